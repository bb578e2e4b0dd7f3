"""Calls of the Python front end leave nothing behind, not even for the collector."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from collections.abc import Iterator

import pytest

from sipnap.client.keys import SuspensionKey
from sipnap.shim.sip import App, Call
from sipnap.shim.sip.front_end import FrontEnd
from sipnap.shim.sip.transactions import TransactionLayer
from sipnap.v1 import suspension_pb2 as pb

CALLS = 50


class _LocalSession:
    """A session whose sidecar continues at once."""

    is_open = True

    def __init__(self) -> None:
        self.front_end: FrontEnd | None = None
        self.outcomes: list[pb.ContinueOutcome] = []

    def suspend(self, suspension: pb.Suspension) -> None:
        continued = pb.Continue(key=suspension.key, resume_route="RESUME", status=pb.CONTINUE_STATUS_OK)
        asyncio.get_running_loop().call_soon(self._continue, continued)

    def cancel(self, key: SuspensionKey) -> None:
        pass

    def answer(self, key: SuspensionKey, outcome: pb.ContinueOutcome) -> None:
        self.outcomes.append(outcome)

    def _continue(self, continued: pb.Continue) -> None:
        assert self.front_end is not None
        self.front_end.continue_all([continued])


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _app() -> App:
    app = App()

    @app.request_route
    async def main(call: Call) -> None:
        match call.request_user:
            case "sleep":
                await call.async_sleep(1)
                call.reply(404, "Not Found")
            case "operation":
                await call.operation("anything", {"of": call.call_id})
                call.reply(404, "Not Found")
            case "route":
                await call.async_route("RESUME", 1)
            case "cancel":
                await asyncio.Event().wait()
            case _:
                raise ValueError("a bug")

    @app.route("RESUME")
    async def resume(call: Call) -> None:
        call.redirect("sip:bob@192.0.2.4")

    return app


def _request(method: str, user: str, number: int, to: str = "<sip:b@c>") -> bytes:
    lines = (
        f"{method} sip:{user}@x SIP/2.0", f"Via: SIP/2.0/UDP 127.0.0.1;rport;branch=z9hG4bK{user}{number}",
        "From: <sip:a@b>;tag=1", f"To: {to}", f"Call-ID: {user}{number}", f"CSeq: 1 {method}", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("user", ["sleep", "operation", "route", "cancel", "raises"])
async def test_calls_are_freed_by_their_last_reference(user: str) -> None:
    session = _LocalSession()
    front_end = session.front_end = FrontEnd(_app(), session, front_end_id="sip", boot_epoch=1)
    layer = TransactionLayer(front_end.receive, host="127.0.0.1", port=0)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.connect(layer.address)
        caller.setblocking(False)
        for number in range(CALLS):
            caller.send(_request("INVITE", user, number))
            if user == "cancel":
                caller.send(_request("CANCEL", user, number))
            final = b""
            async with asyncio.timeout(5):
                while not re.match(rb"SIP/2.0 [3-6]", final):
                    final = await loop.sock_recv(caller, 65535)
            to = re.search(rb"\r\nTo: (.*)\r\n", final)
            assert to is not None
            caller.send(_request("ACK", user, number, to[1].decode()))
        async with asyncio.timeout(5):
            while layer.open_transactions or front_end.open_calls:
                await asyncio.sleep(0.01)
    assert session.outcomes == [pb.CONTINUE_OUTCOME_APPLIED] * (CALLS if user in ("sleep", "operation", "route") else 0)
    left = [thing for thing in gc.get_objects() if isinstance(thing, Call)]
    layer.close()
    assert len(left) <= (1 if user == "raises" else 0)  # the one whose traceback was logged
