"""Routes of a small redirect server, for `sipnap shim sip --routes routes.py`.

Each request's user part picks what happens, so that every call of the API can be tried with any SIP phone or with SIPp.
"""

from sipnap.shim.sip import App, Call

app = App()

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


@app.route("RESUME")
async def resume(call: Call) -> None:
    if call.status != "ok":  # failed, timed_out, lost: say so, or go on all the same, as the service demands
        call.reply(500, "Nap " + call.status)
        return
    call.redirect(str(call.avps["target"]))
