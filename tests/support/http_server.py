"""An HTTP server for tests that answers slowly, badly or never, by path.

In the test's own loop: ``async with http_server() as port``. As a process of its own: ``HttpServer()``, or
``python -m tests.support.http_server --port 0 --delay-ms 200``, which prints ``ready on 127.0.0.1:PORT``.

==================================  ====================================================================================
``/number/N[?delay_ms=D]``          after the delay JSON of this very number N: ``number``, ``decision`` (302 for an
                                    even last digit, else 404), ``uri`` ``sip:N@127.0.0.1``, the same URI once more at
                                    ``data.routes[0].uri``; header ``X-Number: N``
``/status/CODE[?retry_after=S]``    that status at once, with ``Retry-After`` if asked for
``/echo…``                          JSON of what arrived: ``method``, ``target`` (byte for byte), ``headers`` (pairs),
                                    ``body``
``/body?bytes=N&type=T``            N bytes of "x" at once, of that content type
``/text?body=B&type=T``             the text B
``/large?bytes=N``                  N bytes of JSON, 10 MB unless told, as fast as they are taken
``/bomb?bytes=N``                   the same, compressed with gzip: a thousandth of it on the wire
``/drip``                           the header, then one byte per second, for ever
``/stuck``                          never anything
``/redirect[?n=K]``                 302 to ``/redirect?n=K+1``, for ever
``/redirect-to?url=U``              302 to U
``/close``                          closes the connection without an answer
``/figures``                        JSON: ``requests`` and ``in_flight`` (``/figures`` itself not counted), ``most`` in
                                    flight so far, ``connections``
==================================  ====================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import ssl
import sys
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path

from aiohttp import web

from tests.support.processes import Process

HOST = "127.0.0.1"
_CHUNK = b"x" * 65536


class _Handler:
    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._figures = {"requests": 0, "in_flight": 0, "most": 0}
        self._peers: set[object] = set()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer by the first part of the path."""
        kind = request.path.split("/")[1]
        if kind == "figures":
            return web.json_response({**self._figures, "connections": len(self._peers)})
        figures = self._figures
        self._peers.add(request.transport and request.transport.get_extra_info("peername"))
        figures["requests"] += 1
        figures["in_flight"] += 1
        figures["most"] = max(figures["most"], figures["in_flight"])
        try:
            answer = getattr(self, "_" + kind.replace("-", "_"), None)
            return await answer(request) if answer else web.Response(status=404, text="no such mode")
        finally:
            figures["in_flight"] -= 1

    async def _number(self, request: web.BaseRequest) -> web.StreamResponse:
        number = request.path.removeprefix("/number/")
        await asyncio.sleep(float(request.query.get("delay_ms", self._delay_seconds * 1000)) / 1000)
        uri = f"sip:{number}@127.0.0.1"
        decision = 302 if number[-1:] in set("02468") else 404
        body = {"number": number, "decision": decision, "uri": uri, "data": {"routes": [{"uri": uri, "weight": 1}]}}
        return web.json_response(body, headers={"X-Number": number})

    async def _status(self, request: web.BaseRequest) -> web.StreamResponse:
        retry_after = request.query.get("retry_after")
        headers = {"Retry-After": retry_after} if retry_after else {}
        return web.Response(status=int(request.path.split("/")[2]), text="{}", headers=headers)

    async def _echo(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(
            {
                "method": request.method,
                "target": request.raw_path,
                "headers": [[name, value] for name, value in request.headers.items()],
                "body": (await request.read()).decode("utf-8", "surrogateescape"),
            }
        )

    async def _body(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x" * int(request.query["bytes"]), content_type=request.query.get("type"))

    async def _text(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=request.query["body"], content_type=request.query.get("type", "application/json"))

    async def _large(self, request: web.BaseRequest) -> web.StreamResponse:
        left = int(request.query.get("bytes", 10_000_000)) - 2
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'"')
        while left > 0:
            await response.write(_CHUNK[:left])
            left -= len(_CHUNK)
        await response.write(b'"')
        return response

    async def _bomb(self, request: web.BaseRequest) -> web.StreamResponse:
        body = _bomb(int(request.query.get("bytes", 100_000_000)))
        return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})

    async def _drip(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(1)

    async def _stuck(self, request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def _redirect(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"/redirect?n={int(request.query.get('n', 0)) + 1}"})

    async def _redirect_to(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": request.query["url"]})

    async def _close(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport:
            request.transport.abort()
        return web.Response()


@lru_cache
def _bomb(size_bytes: int) -> bytes:
    return gzip.compress(b'"' + b"x" * size_bytes + b'"')


@contextlib.asynccontextmanager
async def http_server(
    port: int = 0, *, delay_seconds: float = 0.2, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve in this loop; gives the port. Leaving it drops whatever is still being answered."""
    # A client that goes away ends its handler, or those of /stuck and /drip would pile up.
    server = web.Server(_Handler(delay_seconds).answer, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port, ssl_context=tls, backlog=1024)
        await site.start()
        (address, *_) = runner.addresses
        yield address[1]
    finally:
        await runner.cleanup()


class HttpServer(Process):
    """The server as a process, ready; its address is `url`, without a slash at the end."""

    def __init__(self, *, delay_seconds: float = 0.2) -> None:
        module = "tests.support.http_server"
        super().__init__(
            "http-server",
            [sys.executable, "-m", module, "--port", "0", "--delay-ms", f"{delay_seconds * 1000:g}"],
            cwd=Path(__file__).parents[2],
        )
        try:
            self.port = int(self.wait_output(rf"^ready on {HOST}:(\d+)$")[1])
        except BaseException:
            self.kill()
            raise
        self.address = f"{HOST}:{self.port}"
        self.url = f"http://{self.address}"


async def _serve_forever(arguments: argparse.Namespace) -> None:
    tls = None
    if arguments.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    async with http_server(arguments.port, delay_seconds=arguments.delay_ms / 1000, tls=tls) as port:
        print(f"ready on {HOST}:{port}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=200)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_forever(parser.parse_args()))
