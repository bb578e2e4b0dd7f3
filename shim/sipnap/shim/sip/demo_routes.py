"""The routes that `sipnap demo` calls: what a user of the front end would write. See docs/python-front-end.md."""

from sipnap.shim.sip import App, Call

ROUTE_SECONDS = 1.0
SLEEP_SECONDS = 0.5
LONG_SECONDS = 20.0

app = App()


@app.request_route
async def main(call: Call) -> None:
    """Nap in the way that the user part of the Request-URI asks for."""
    if call.request_user == "sleep":
        if await call.async_sleep(SLEEP_SECONDS):
            call.reply(486, "Busy Here")
            return
    elif call.request_user.isdigit():
        found = await call.operation("directory", {"number": call.request_user}, timeout_seconds=2)
        if found:
            call.redirect(found.text("uri"))
            return
    else:
        call.avps["target"] = "sip:bob@192.0.2.4"
        await call.async_route("RESUME", LONG_SECONDS if call.request_user == "long" else ROUTE_SECONDS)
    call.reply(503, "Service Unavailable")


@app.route("RESUME")
async def resume(call: Call) -> None:
    """Send the caller elsewhere."""
    if call.status == "ok":
        call.redirect(str(call.avps["target"]))
    else:
        call.reply(500, f"Nap {call.status}")
