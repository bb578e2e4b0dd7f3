"""The lookups against real servers on this machine, without a sidecar around them."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import dns.rcode
import pytest
import trustme

from sipnap.client.operations import OperationError, Value
from sipnap.sidecar.lookups.allowed_hosts import AllowedHost, AllowedHosts
from sipnap.sidecar.lookups.enum import MOST_QUERIES, MOST_URIS, EnumLookup
from sipnap.sidecar.lookups.http import HttpLookup
from sipnap.sidecar.lookups.http_settings import template_of_table
from sipnap.v1 import suspension_pb2 as pb
from tests.support.dns_server import dns_server, name_of, naptr, number_of, numbers
from tests.support.http_server import HttpServer, http_server
from tests.support.processes import free_port

STATE = pb.TransactionState(method=b"INVITE", source_ip="192.0.2.1")
DOMAIN = "e164.test"


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    with HttpServer(delay_seconds=0.2) as process:
        yield process


@asynccontextmanager
async def _http(
    *allow: str, tls: ssl.SSLContext | None = None, connections: int = 64, **templates: Any
) -> AsyncIterator[HttpLookup]:
    lookup = HttpLookup(
        AllowedHosts(map(AllowedHost.parse, allow)),
        {name: template_of_table(name, table) for name, table in templates.items()},
        tls=tls or ssl.create_default_context(),
        connections_per_host=connections,
    )
    try:
        yield lookup
    finally:
        await lookup.close()


async def _ask(lookup: HttpLookup | EnumLookup, **arguments: Value) -> dict[str, Value]:
    return dict(await lookup(arguments, STATE))


async def _refused(lookup: HttpLookup | EnumLookup, **arguments: Value) -> OperationError:
    with pytest.raises(OperationError) as raised:
        await lookup(arguments, STATE)
    return raised.value


async def test_each_of_many_lookups_at_once_gets_its_own_answer(server: HttpServer) -> None:
    table = {
        "url": f"{server.url}/number/{{n}}",
        "pick": {"target": "data.routes[0].uri", "to": "decision"},
        "answer_headers": {"n": "X-Number"},
    }
    async with _http(server.address, connections=16, route=table) as lookup:
        started = time.monotonic()
        answers = await asyncio.gather(
            *(_ask(lookup, template=b"route", n=str(number).encode()) for number in range(64))
        )
        took_seconds = time.monotonic() - started
        for number, answer in enumerate(answers):
            expected = {"status": 200, "target": f"sip:{number}@127.0.0.1".encode(), "to": 404 if number % 2 else 302}
            assert answer == expected | {"n": str(number).encode()}
        assert took_seconds < 5
        figures = json.loads(str((await _ask(lookup, url=f"{server.url}/figures".encode()))["body"], "utf-8"))  # type: ignore[arg-type]
    assert figures["most"] == 16, "the bound of connections per host"
    assert figures["connections"] == 16, "connections are used again"


async def test_what_arrives_is_what_was_written_byte_for_byte(server: HttpServer) -> None:
    table = {
        "url": f"{server.url}/echo/a%2Fb/{{n}}?q={{n}}&m={{state.method}}&x=%20+", "headers": {"X-From": "<{n}>"},
        "json": {"n": "{n}"}, "body": True,
    }  # fmt: skip
    value = b"../%41\xff ?#&=+;@:\xc3\xbc\\"
    async with _http(server.address, t=table) as lookup:
        for hostile in (value.replace(b"../", b""), b"x/y", b"%2F"):
            echoed = json.loads((await _ask(lookup, template=b"t", n=hostile))["body"])  # type: ignore[arg-type]
            encoded = quote(hostile, safe="")
            assert echoed["target"] == f"/echo/a%2Fb/{encoded}?q={encoded}&m=INVITE&x=%20+"
            assert json.loads(echoed["body"]) == {"n": hostile.decode(errors="replace")}
            headers = {name.lower(): text for name, text in echoed["headers"]}
            assert headers["host"] == server.address
            assert headers["accept-encoding"] == "identity"
            assert "cookie" not in headers
        assert (await _refused(lookup, template=b"t", n=value)).code == "http_bad_arguments"


async def test_a_url_of_the_script_is_asked_if_its_host_is_allowed(server: HttpServer) -> None:
    async with _http(server.address) as lookup:
        url = f"{server.url}/echo/{{who}}".encode()
        echoed = json.loads((await _ask(lookup, url=url, who=b"a/b", form_x=b"1&2", header_x_t=b"z"))["body"])  # type: ignore[arg-type]
        assert (echoed["method"], echoed["target"], echoed["body"]) == ("POST", "/echo/a%2Fb", "x=1%262")
        assert ["x-t", "z"] in [[name.lower(), text] for name, text in echoed["headers"]]
        refused = await _refused(lookup, url=f"http://127.0.0.1:{free_port()}/".encode())
        assert refused.code == "http_not_allowed"
        assert "--http-allow 127.0.0.1:" in refused.text
        assert (await _refused(lookup, url=b"http://localhost/", x=b"1")).code == "http_not_allowed"
        assert (await _refused(lookup, url=url, who=b"a", extra=b"b")).code == "http_bad_arguments"
        assert (await _refused(lookup, url=b"http://{who}/", who=b"a")).code == "http_bad_template"
        assert (await _refused(lookup, url=url, template=b"t")).code == "http_bad_arguments"
        assert (await _refused(lookup)).code == "http_bad_arguments"
        assert (await _refused(lookup, template=b"none")).code == "http_bad_template"


def _template(server: HttpServer, path: str, **settings: Any) -> dict[str, Any]:
    return {"url": f"{server.url}{path}", "total_seconds": 1.0} | settings


@pytest.mark.parametrize(
    ("path", "settings", "code", "retries"),
    [
        ("/stuck", {}, "http_timeout", True),
        ("/drip", {}, "http_timeout", True),
        ("/large", {}, "http_too_large", False),
        ("/body?bytes=300000", {}, "http_too_large", False),
        ("/bomb?bytes=300000", {}, "http_too_large", False),
        ("/redirect", {"max_redirects": 5}, "http_redirect", False),
        ("/redirect-to?url=http://127.0.0.1:1/", {"max_redirects": 1}, "http_not_allowed", False),
        ("/redirect-to?url=http://169.254.1.1/latest", {"max_redirects": 1}, "http_not_allowed", False),
        ("/redirect-to?url=//localhost/x", {"max_redirects": 1}, "http_not_allowed", False),
        ("/redirect-to?url=file:///etc/passwd", {"max_redirects": 1}, "http_redirect", False),
        ("/redirect-to?url=http://a:b@127.0.0.1/", {"max_redirects": 1}, "http_redirect", False),
        ("/redirect-to?url=http://%5B/", {"max_redirects": 1}, "http_redirect", False),
        ("/close", {}, "http_disconnected", True),
        ("/status/503?retry_after=7", {"ok_status": ["2xx"]}, "http_status", True),
        ("/text?body=no", {"pick": {"a": "b"}}, "http_bad_json", False),
    ],
)  # fmt: skip
async def test_what_a_server_does_wrong_is_an_error_with_a_code(
    server: HttpServer, path: str, settings: dict[str, Any], code: str, retries: bool
) -> None:
    async with _http(server.address, t=_template(server, path, **settings)) as lookup:
        started = time.monotonic()
        refused = await _refused(lookup, template=b"t")
        assert (refused.code, refused.retry_after_seconds is not None) == (code, retries), refused.text
        assert server.address in refused.text
        assert time.monotonic() - started < 3
        if path.endswith("=7"):
            assert refused.retry_after_seconds == 7


async def test_nobody_there_is_an_error_that_may_pass() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    async with _http(nobody, t={"url": f"http://{nobody}/"}) as lookup:
        refused = await _refused(lookup, template=b"t")
    assert refused.code == "http_connect"
    assert refused.retry_after_seconds is not None


async def test_redirects_are_answers_unless_they_are_to_be_followed(server: HttpServer) -> None:
    templates: dict[str, Any] = {
        "plain": _template(server, "/redirect", answer_headers={"to": "Location"}, body=False),
        "followed": _template(
            server, "/redirect-to?url=/echo/x%3Fa=b%2520c", max_redirects=1, headers={"Authorization": "secret"}
        ),
    }
    async with _http(server.address, **templates) as lookup:
        assert await _ask(lookup, template=b"plain") == {"status": 302, "to": b"/redirect?n=1"}
        echoed = json.loads((await _ask(lookup, template=b"followed"))["body"])  # type: ignore[arg-type]
        assert echoed["target"] == "/echo/x?a=b%20c"
        assert ["Authorization", "secret"] in echoed["headers"]


async def test_a_redirect_to_another_host_takes_no_headers_along(server: HttpServer) -> None:
    async with http_server() as other_port:
        location = quote(f"http://127.0.0.1:{other_port}/echo", safe="")
        table = _template(
            server, f"/redirect-to?url={location}", max_redirects=1, headers={"Authorization": "secret", "X-Key": "k"}
        )
        async with _http(server.address, f"127.0.0.1:{other_port}", t=table) as lookup:
            echoed = json.loads((await _ask(lookup, template=b"t"))["body"])  # type: ignore[arg-type]
    assert not {name.lower() for name, _ in echoed["headers"]} & {"authorization", "x-key"}


async def test_a_compressed_answer_is_read_within_its_bound(server: HttpServer) -> None:
    table = _template(server, "/bomb?bytes=100000", max_bytes=100_002, pick={"a": "b"})
    async with _http(server.address, t=table) as lookup:
        assert await _ask(lookup, template=b"t") == {"status": 200}


async def test_cancelling_ends_the_request_at_the_server_too(server: HttpServer) -> None:
    async with _http(server.address, t=_template(server, "/stuck", total_seconds=60)) as lookup:
        tasks = [asyncio.create_task(_ask(lookup, template=b"t")) for _ in range(5)]

        async def in_flight() -> int:
            return int(json.loads((await _ask(lookup, url=f"{server.url}/figures".encode()))["body"])["in_flight"])  # type: ignore[arg-type]

        await _until(in_flight, 5)
        for task in tasks:
            task.cancel()
        assert [
            isinstance(error, asyncio.CancelledError) for error in await asyncio.gather(*tasks, return_exceptions=True)
        ] == [True] * 5
        await _until(in_flight, 0)


async def _until(ask: Callable[[], Any], wanted: object) -> None:
    async with asyncio.timeout(10):
        while await ask() != wanted:
            await asyncio.sleep(0.02)


async def test_tls_is_checked() -> None:
    authority = trustme.CA()
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with http_server(tls=server_tls, delay_seconds=0) as port:
        table = {"url": f"https://127.0.0.1:{port}/number/7", "pick": {"n": "number"}}
        async with _http(f"127.0.0.1:{port}", tls=trusting, t=table) as lookup:
            assert (await _ask(lookup, template=b"t"))["n"] == b"7"
        async with _http(f"127.0.0.1:{port}", t=table) as lookup:
            refused = await _refused(lookup, template=b"t")
            assert (refused.code, refused.retry_after_seconds) == ("http_tls", None)


async def test_hostile_answers_take_little_memory(server: HttpServer) -> None:
    """100 MB on 8 lookups at once, and bombs that would be 800 MB, against 256 KiB each."""
    templates: dict[str, Any] = {
        "large": _template(server, "/large?bytes=12000000", max_redirects=0),
        "bomb": _template(server, "/bomb?bytes=20000000", total_seconds=10),
    }
    async with _http(server.address, **templates) as lookup:
        await _refused(lookup, template=b"large")
        gc.collect()
        before_bytes = _peak_bytes()
        for name in (b"large", b"bomb"):
            for refused in await asyncio.gather(*(_refused(lookup, template=name) for _ in range(8))):
                assert refused.code == "http_too_large"
        assert _peak_bytes() - before_bytes < 24 << 20


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_garbage_instead_of_http_is_an_error() -> None:
    for garbage in (
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000,
    ):

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, garbage: bytes = garbage) -> None:
            with suppress(OSError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(garbage)
                await writer.drain()
            writer.close()

        async with AsyncExitStack() as stack:
            listening = await asyncio.start_server(answer, "127.0.0.1", 0)
            stack.callback(listening.close)
            port = listening.sockets[0].getsockname()[1]
            lookup = await stack.enter_async_context(_http(f"127.0.0.1:{port}", t={"url": f"http://127.0.0.1:{port}/"}))
            assert (await _refused(lookup, template=b"t")).code in ("http_bad_answer", "http_disconnected")


# ENUM


@asynccontextmanager
async def _enum(
    zone: Callable[[str], Any], *, seconds: float = 5.0, domains: Sequence[str] = (DOMAIN,)
) -> AsyncIterator[EnumLookup]:
    async with dns_server(zone) as port:
        yield EnumLookup(domains, [("127.0.0.1", port)], seconds)


async def test_a_number_becomes_its_uris_in_the_order_of_preference() -> None:
    async with _enum(numbers(DOMAIN)) as lookup:
        answers = await asyncio.gather(
            *(_ask(lookup, number=f"+43{number}".encode()) for number in range(100_100, 100_200))
        )
    for number, answer in enumerate(answers, 100_100):
        assert answer == {
            "found": True,
            "uri": f"sip:43{number}@127.0.0.1",
            "uris": [f"sip:43{number}@127.0.0.1", f"sip:second-43{number}@127.0.0.1"],
        }


async def test_an_answer_too_large_for_udp_is_fetched_by_tcp() -> None:
    async with _enum(numbers(DOMAIN)) as lookup:
        assert (await _ask(lookup, number=b"+43007"))["uri"] == "sip:43007@127.0.0.1"


@pytest.mark.parametrize("number", [b"+43001", b"+43004", b"+43006", b"+43008"])
async def test_nothing_to_be_found_is_an_answer_and_no_error(number: bytes) -> None:
    async with _enum(numbers(DOMAIN)) as lookup:
        assert await _ask(lookup, number=number) == {"found": False}


async def test_another_service_finds_other_records() -> None:
    async with _enum(numbers(DOMAIN)) as lookup:
        assert (await _ask(lookup, number=b"+43100", service=b"E2U+email:mailto"))[
            "uri"
        ] == "mailto:somebody@example.com"
        assert await _ask(lookup, number=b"+43100", service=b"E2U+h323") == {"found": False}


async def test_what_dns_does_wrong_is_an_error_with_a_code() -> None:
    async with _enum(numbers(DOMAIN), seconds=0.4) as lookup:
        silent = await _refused(lookup, number=b"+43002")
        broken = await _refused(lookup, number=b"+43003")
        assert [silent.code, broken.code] == ["enum_timeout", "enum_server_failure"]
        assert None not in (silent.retry_after_seconds, broken.retry_after_seconds)
        for arguments, code in (
            ({"number": b"43"}, "enum_bad_number"), ({}, "enum_bad_number"), ({"number": 43}, "enum_bad_arguments"),
            ({"number": b"+43", "service": b"?"}, "enum_bad_arguments"),
            ({"number": b"+43", "x": b"y"}, "enum_bad_arguments"),
            ({"number": b"+43", "domain": b"other.test"}, "enum_bad_arguments"),
        ):  # fmt: skip
            refused = await _refused(lookup, **arguments)
            assert (refused.code, refused.retry_after_seconds) == (code, None)


async def test_a_second_server_is_asked_when_the_first_is_silent() -> None:
    async with dns_server(lambda _: None) as silent, dns_server(numbers(DOMAIN)) as good:
        lookup = EnumLookup([DOMAIN], [("127.0.0.1", silent), ("127.0.0.1", good)], 4.0)
        assert (await _ask(lookup, number=b"+43100"))["found"] is True


async def test_the_script_may_choose_among_the_trees_that_the_operator_allows() -> None:
    def zone(name: str) -> Any:
        return [naptr(1, 1, "u", "E2U+sip", f"!^.*$!sip:found@{name.partition('3.4.')[2]}!")]

    async with _enum(zone, domains=("one.test", "Two.Test.")) as lookup:
        assert (await _ask(lookup, number=b"+43"))["uri"] == "sip:found@one.test"
        assert (await _ask(lookup, number=b"+43", domain=b"two.test"))["uri"] == "sip:found@two.test"


async def test_records_that_lead_on_are_followed_a_few_times() -> None:
    asked = []

    def zone(name: str) -> Any:
        asked.append(name)
        following = number_of(name, DOMAIN) + "1"
        return [naptr(1, 1, "", "", "", name_of(following, DOMAIN) + ".")]

    async with _enum(zone) as lookup:
        assert await _ask(lookup, number=b"+43") == {"found": False}
    assert len(asked) == MOST_QUERIES


async def test_a_branch_that_fails_does_not_spoil_what_another_found() -> None:
    def zone(name: str) -> Any:
        if number_of(name, DOMAIN) == "431":
            return dns.rcode.SERVFAIL
        return [
            naptr(1, 1, "", "", "", name_of("431", DOMAIN) + "."),
            naptr(2, 1, "u", "E2U+sip", "!^.*$!sip:a@h!"),
            naptr(3, 1, "u", "E2U+sip", "!^.*$!sip:of-a-later-order@h!"),
        ]

    async with _enum(zone) as lookup:
        assert await _ask(lookup, number=b"+43") == {"found": True, "uri": "sip:a@h", "uris": ["sip:a@h"]}


async def test_a_zone_full_of_hostile_records_costs_little() -> None:
    # They match nothing, and cost more than the budget: what comes after them is not looked at any more.
    slow = [naptr(1, i, "u", "E2U+sip", f"!^({'.?' * 50})*{i}x$!sip:a@h!") for i in range(60)]
    slow.append(naptr(1, 61, "u", "E2U+sip", "!^.*$!sip:late@h!"))
    many = [naptr(1, i, "u", "E2U+sip", f"!^.*$!sip:{i}@h!") for i in range(100)]

    def zone(name: str) -> Any:
        return slow if name.startswith("1.") else many

    async with _enum(zone) as lookup:
        await _ask(lookup, number=b"+4312")  # warm
        loop = asyncio.get_running_loop()
        started, cpu = loop.time(), time.process_time()
        assert await _ask(lookup, number=b"+43" + b"1" * 29) == {"found": False}
        assert time.process_time() - cpu < 0.5, "the server, in the same process, included"
        assert loop.time() - started < 2
        uris = (await _ask(lookup, number=b"+4312"))["uris"]
        assert isinstance(uris, list)
        assert len(uris) == MOST_URIS


async def test_cancelling_an_enum_lookup_leaves_nothing_open() -> None:
    async with _enum(numbers(DOMAIN), seconds=60) as lookup:
        tasks = [asyncio.create_task(_ask(lookup, number=b"+43002")) for _ in range(5)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        gc.collect()  # a socket left open would warn here, and warnings are errors
