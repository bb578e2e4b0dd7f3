"""Routes of a small redirect server, for `sipnap shim sip --routes routes.py`.

Each request's user part picks what happens, so that every call of the API can be tried with any SIP phone or with SIPp.
"""

import logging

from sipnap.shim.sip import App, Call, Task

app = App()
log = logging.getLogger("routes")

BOB = "sip:bob@192.0.2.4"


@app.request_route
async def main(call: Call) -> None:
    if call.method == "OPTIONS":
        call.reply(200, "OK", [("Allow", "INVITE, ACK, CANCEL, OPTIONS")])
        return
    match call.request_user:
        case "sleep":
            await sleep_then_go_on(call)
        case "ring":
            call.reply(180, "Ringing")
            await nap_and_resume(call, seconds=3)
        case number if number.startswith("+"):
            await ask_dns(call, number)
        case _:
            await nap_and_resume(call, seconds=1)


async def nap_and_resume(call: Call, seconds: float) -> None:
    """End this route and go on in RESUME when the time has passed (async module: async_route)."""
    call.avps["target"] = BOB  # what RESUME has to know travels in AVPs
    if not await call.async_route("RESUME", seconds):
        call.reply(503, "Unavailable")  # refused at the door: the call never napped


async def sleep_then_go_on(call: Call) -> None:
    """Go on with the next line when the time has passed (async module: async_sleep)."""
    if not await call.async_sleep(0.5):
        call.reply(503, "Unavailable")
        return
    call.reply(404, "Not Found")


async def ask_dns(call: Call, number: str) -> None:
    """Have a worker of the sidecar look the number up, and go on with what it found."""
    found = await call.operation("enum", {"number": number}, timeout_seconds=3)
    if not found:  # refused at the door, failed, timed out or lost: found.error says what went wrong
        call.reply(503, "Unavailable")
    elif found.values["found"]:
        call.redirect(found.text("uri"))
    else:
        call.reply(404, "Not Found")
        call.run_task("UNKNOWN_NUMBER", number, seconds=1)  # nobody waits for it


@app.task("UNKNOWN_NUMBER")
async def unknown_number(task: Task) -> None:
    log.warning("number not in DNS number=%r", task.data)


@app.route("RESUME")
async def resume(call: Call) -> None:
    if call.status != "ok":  # failed, timed_out, lost: say so, or go on all the same, as the service demands
        call.reply(500, "Nap " + call.status)
        return
    call.redirect(str(call.avps["target"]))
