"""The shim's socket in the hand of a test: what the proxy sends, and what it makes of NAP requests."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sipnap.client.keys import SuspensionKey, key_of
from sipnap.client.request_head import complete
from sipnap.shim.kamailio import datagram, nap_request
from sipnap.shim.kamailio.nap import Nap
from sipnap.v1 import suspension_pb2 as pb
from tests.acceptance.proxy import Proxy


class HandShim:
    """The shim's socket, in the hand of the test."""

    def __init__(self, proxy: Proxy, port: int | None = None) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", proxy.ports.shim if port is None else port))
        self._socket.connect(("127.0.0.1", proxy.ports.nap))

    def close(self) -> None:
        self._socket.close()

    def send(self, request: bytes) -> None:
        self._socket.send(request)

    def receive(self, seconds: float = 3) -> Nap | datagram.Task | datagram.Cancel | datagram.Answer | datagram.Answers:
        self._socket.settimeout(seconds)
        return datagram.read(self._socket.recv(65536))

    def is_silent(self, seconds: float = 0.3) -> bool:
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(65536)
        except TimeoutError:
            return True
        return False

    def ask(self, request: bytes) -> datagram.Answer:
        self.send(request)
        answer = self.receive()
        assert isinstance(answer, datagram.Answer)
        return answer

    def open_gate(self) -> int:
        """Open it for 3 s; returns the proxy's boot epoch."""
        answer = self.ask(nap_request.gate_request(1, is_open=True))
        assert (answer.result, answer.user) == (200, b"open.1.16"), "it says how many naps a batch may have"
        return answer.boot_epoch

    def suspension(self) -> pb.Suspension:
        """What the proxy has suspended, with all that its head says."""
        message = self.receive()
        assert isinstance(message, Nap)
        suspension = message.suspension
        complete(suspension.state)
        return suspension

    def suspended(self) -> SuspensionKey:
        return key_of(self.suspension().key)

    def resume(
        self,
        key: SuspensionKey,
        *,
        route: str | None = None,
        error: str = "",
        error_code: str = "",
        status: int = 1,
        values: Sequence[pb.NamedValue] = (),
    ) -> int:
        name = nap_request.nap_name(key)
        return self.ask(
            nap_request.continue_request(name, status, route=route, error=error, error_code=error_code, values=values)
        ).result
