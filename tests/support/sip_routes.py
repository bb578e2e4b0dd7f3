"""Routes for the tests of the Python front end; the Request-URI's user part picks one, its host part is free."""

import asyncio

from sipnap.shim.sip import App, Call

app = App()


@app.request_route
async def main(call: Call) -> None:
    name = call.request_user
    if name == "quick":
        call.reply(404, "Not Found")
    elif name == "ring":
        call.reply(180, "Ringing", [("X-Ring", "1")])
        await nap(call, "RESUME", 0.4)
    elif name == "sleep":
        local = "kept"
        if not await call.async_sleep(0.4):
            call.reply(503, "Refused")
        else:
            call.reply(486, f"{local} {call.status}")
    elif name == "twice":
        await call.async_sleep(0.1)
        await call.async_sleep(0.1)
        await nap(call, "RESUME", 0.1)
    elif name == "guarded":
        try:
            await nap(call, "RESUME", 0.1)
        except Exception:
            call.reply(500, "Swallowed")
    elif name == "nowhere":
        await nap(call, "NOT_THERE", 0.1)
    elif name == "raises":
        raise LookupError("a bug in a route")
    elif name == "exits":
        raise SystemExit(3)
    elif name == "silent":
        return
    elif name == "hangs":
        await asyncio.Event().wait()
    elif name == "long":
        await cancelled_in(call)
    elif name == "header":
        call.reply(200, "OK", [("X-From", call.from_), ("X-Seen", call.header("x-test") or "none")])
    elif name == "suspended":
        key = call.t_suspend()
        call.reply(183, "Session Progress", [("X-Key", str(key))])
    elif name == "bad-avp":
        call.avps["x"] = 1.5  # type: ignore[assignment]
        await nap(call, "RESUME", 0.1)
    elif name.startswith("nap-"):
        call.avps["from"] = call.from_
        call.avps["number"] = 7
        await nap(call, "RESUME", float(name.removeprefix("nap-")))
    else:
        call.reply(404, "Not Found")


async def nap(call: Call, route: str, seconds: float) -> None:
    if not await call.async_route(route, seconds):
        call.reply(503, "Refused")


async def cancelled_in(call: Call) -> None:
    try:
        await call.async_sleep(30)
    except asyncio.CancelledError:
        print(f"route cancelled {call.call_id} replied={call.reply(404, 'Too Late')}", flush=True)
        raise


@app.route("RESUME")
async def resume(call: Call) -> None:
    call.redirect("sip:bob@192.0.2.4", reason=f"Moved {call.status} naps {call.nap_count}")
