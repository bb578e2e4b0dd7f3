"""The least that a shim in Python can do: ``python -m bench.bare_shim``, a process of its own.

It takes the proxy's datagrams, reads of each only what names the nap, waits in itself, and sends the NAP requests in
batches. There is no sidecar, no journal, no stream, nothing is sent twice, answers are thrown away, a CANCEL is not
noticed: nobody could run it. What it costs per call is what the way from the proxy and back costs, on this machine and
in this load, before sipnap has done anything at all.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections import deque

from sipnap.client.keys import Key
from sipnap.shim.kamailio import nap_request

_MOST_IN_BATCH = 8
_TURN_SECONDS = 0.001
_HEARTBEAT_SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen-port", type=int, required=True, help="where the proxy sends to")
    parser.add_argument("--proxy-port", type=int, required=True, help="the proxy's NAP socket")
    arguments = parser.parse_args()
    shim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    shim.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    shim.bind(("127.0.0.1", arguments.listen_port))
    shim.connect(("127.0.0.1", arguments.proxy_port))
    shim.setblocking(False)
    print("ready", flush=True)
    _carry(shim)


def _carry(shim: socket.socket) -> None:
    receive, send, clock = shim.recv, shim.send, time.monotonic
    napping: deque[tuple[float, Key]] = deque()  # in order of their time, since all naps are equally long
    next_heartbeat, heartbeats = 0.0, 0
    while True:
        now = clock()
        if now >= next_heartbeat:
            next_heartbeat, heartbeats = now + _HEARTBEAT_SECONDS, heartbeats + 1
            send(nap_request.gate_request(heartbeats, is_open=True))
        try:
            while True:
                datagram = receive(4096)
                if datagram.startswith(b"SN1 S "):
                    _, _, epoch, index, label, nap, delay_ms, _ = datagram.split(b" ", 7)
                    key = ("", int(epoch), int(index), int(label), int(nap))
                    napping.append((clock() + int(delay_ms) * 1e-3, key))
        except BlockingIOError:
            pass
        keys = []
        while napping and napping[0][0] <= now:
            keys.append(napping.popleft()[1])
        for start in range(0, len(keys), _MOST_IN_BATCH):
            send(nap_request.plain_request(nap_request.plain_user(keys[start : start + _MOST_IN_BATCH])))
        time.sleep(_TURN_SECONDS)


if __name__ == "__main__":
    main()
