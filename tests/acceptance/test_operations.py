"""Operations and tasks on a real proxy: every call is answered by its own result, in both engines."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.caller import Call, Caller
from tests.acceptance.sipp import Callers, header_of
from tests.acceptance.stack import Stack
from tests.support.dns_server import DnsServer
from tests.support.http_server import HttpServer
from tests.support.processes import wait_until

RATE, SECONDS = 300, 8
LOOKUP_SECONDS = 0.2


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    with DnsServer(delay_seconds=0.05) as running:
        yield running


@pytest.fixture(scope="module")
def http() -> Iterator[HttpServer]:
    with HttpServer(delay_seconds=LOOKUP_SECONDS) as running:
        yield running


@pytest.fixture(scope="module", params=["operations.cfg", "operations_kemi.cfg"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, http: HttpServer, dns: DnsServer
) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("stack")
    templates = directory / "templates.toml"
    templates.write_text(
        f'[route]\nurl = "{http.url}/number/{{number}}"\n'
        'pick = { number = "number", decision = "decision", uri = "data.routes[0].uri" }\n'
    )
    flags = [
        *("--operations", "tests.acceptance.slow_operations"),
        *("--group", "name=lookups,workers=200"),
        *("--http-allow", http.address, "--http-templates", str(templates), "--http-connections", "200"),
        *("--enum-server", dns.address, "--enum-domain", dns.domain),
    ]
    with Stack(directory, script=request.param, kemi_script="operations_script.py", sidecar_flags=flags) as running:
        yield running


@pytest.fixture
def caller(stack: Stack) -> Iterator[Caller]:
    with Caller(stack.proxy.ports.sip) as ready:
        yield ready


def numbers(count: int, digits: str, seed: int = 5) -> list[str]:
    """So many different ones, of ten digits; the last is one of those given."""
    print(f"numbers drawn with seed {seed}")
    dice = random.Random(seed)
    return [f"{number}{dice.choice(digits)}" for number in dice.sample(range(10**8, 10**9), count)]


def call_all(
    stack: Stack,
    directory: Path,
    called: list[str],
    *,
    user: str,
    operation: str,
    rate: int = RATE,
    most_ms: int = 5000,
) -> dict[str, str]:
    """Place a call for each number; the one final reply of each. Nothing is held when it returns."""
    before = stack.counters()
    keys = ("-key", "operation", operation, "-key", "group", "lookups", "-key", "most_ms", str(most_ms))
    with Callers(
        directory / "sipp", stack.proxy.address, scenario="looked_up.xml", rate=rate, calls=len(called), user=user,
        fields=called, keys=keys,
    ) as sipp:  # fmt: skip
        calls = sipp.result(60)
        assert (calls.successful, calls.failed) == (len(called), 0), f"{calls}\n{sipp.errors()}"
        assert calls.retransmissions == 0
    replies = sipp.final_replies()
    assert replies.keys() == set(called)
    assert all(len(replies[number]) == 1 for number in called)
    wait_until(lambda: not stack.held(), 10, "nothing is held")
    counters = stack.counters()
    assert counters.accepted - before.accepted == len(called)
    assert counters.applied - before.applied == len(called)
    for name in ("refused", "gone", "rejected", "lost"):
        assert getattr(counters, name) == getattr(before, name), name
    assert "acceptance: resumed twice" not in stack.proxy.output()
    return {number: replies[number][0] for number in called}


def status_of(reply: str) -> int:
    return int(reply.split(" ", 2)[1])


def digest(data: bytes) -> str:
    """As the scripts note the data of a task."""
    return hashlib.md5(data).hexdigest()


def ask(caller: Caller, user: str = "lookup", *, operation: bytes, number: bytes = b"7", nap_ms: int = 5000) -> Call:
    headers = b"X-Operation: %s\r\nX-Number: %s\r\nX-Group: lookups\r\nX-Route: note\r\n" % (operation, number)
    return caller.invite(user, nap_ms=nap_ms, headers=headers)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("operation", ["find", "http"])
def test_routed_by_a_lookup(stack: Stack, tmp_path: Path, operation: str) -> None:
    """200 ms each, 60 at a time: 302 to the contact that was found for this number, or 404, as the lookup says."""
    called = numbers(RATE * SECONDS, "0123456789")
    began = time.monotonic()
    replies = call_all(stack, tmp_path, called, user="route" if operation == "http" else "lookup", operation=operation)
    took = time.monotonic() - began
    mixed_up = [
        number
        for number, reply in replies.items()
        if status_of(reply) != (302 if int(number) % 2 == 0 else 404)
        or header_of(reply, "X-Looked-Up").split(" ")[0] != number
        or (header_of(reply, "Contact") != f"<sip:{number}@127.0.0.1>" and int(number) % 2 == 0)
    ]
    statuses = Counter(status_of(reply) for reply in replies.values())
    print(f"\n{operation}: {len(replies)} calls at {RATE}/s, {len(mixed_up)} mixed up, {dict(statuses)}, {took:.1f} s")
    assert not mixed_up
    assert set(statuses) == {302, 404}


@pytest.mark.timeout(120)
def test_routed_by_enum(stack: Stack, tmp_path: Path) -> None:
    """Numbers that end in 001 are in no DNS: 404. All others have a URI of their own."""
    called = [f"+{number}{'001' if int(number) % 3 else '009'}" for number in numbers(RATE * SECONDS, "1")]
    replies = call_all(stack, tmp_path, called, user="lookup", operation="enum")
    for number, reply in replies.items():
        contact = header_of(reply, "Contact")
        assert (status_of(reply), contact) == (
            (404, "") if number.endswith("001") else (302, f"<sip:{number[1:]}@127.0.0.1>")
        )


@pytest.mark.timeout(120)
def test_several_operations_in_one_nap(stack: Stack, tmp_path: Path) -> None:
    """Each call is told both of its results, after one nap."""
    called = [f"+{number}" for number in numbers(100 * SECONDS, "9")]
    replies = call_all(stack, tmp_path, called, user="both", operation="http", rate=100)
    for number, reply in replies.items():
        assert header_of(reply, "X-Looked-Up") == f"{number} sip:{number[1:]}@127.0.0.1"


@pytest.mark.timeout(120)
def test_tasks(stack: Stack, tmp_path: Path) -> None:
    """Each runs once, with its own data, outside of any transaction; the call is over long before."""
    called = numbers(RATE * SECONDS, "0123456789", seed=len(stack.proxy.script_text))
    replies = call_all(stack, tmp_path, called, user="task", operation="", most_ms=30_000)
    assert {status_of(reply) for reply in replies.values()} == {480}
    ran = Counter(re.findall(r"acceptance: task \[ok\] \[\] \[(.*?)\] in \[<null>\]", stack.proxy.output()))
    assert {number: ran[digest(number.encode())] for number in called} == dict.fromkeys(called, 1)


def test_a_task_waits_its_time(stack: Stack, caller: Caller) -> None:
    before = stack.counters().applied
    headers = b"X-Number: later\r\nX-Route: note\r\n"
    call = caller.invite("task", nap_ms=700, headers=headers)
    assert call.final().reason == "Task"
    stack.proxy.wait_output(rf"acceptance: task \[ok\] \[\] \[{digest(b'later')}\]", 5)
    assert time.monotonic() - call.sent_seconds >= 0.7
    wait_until(lambda: stack.counters().applied == before + 1, 3, "the task is answered for")


def test_a_program_runs_a_task(stack: Stack) -> None:
    stack.client.run_task("acceptance", "note", b"of a program")
    stack.proxy.wait_output(rf"acceptance: task \[ok\] \[\] \[{digest(b'of a program')}\]", 5)


@pytest.mark.parametrize(
    ("number", "code", "error"),
    [
        (b"7", "spoiled", 'spoil: it is "spoiled" X-Injected: yes, $ru'),
        (b"raise", "runtime_error", "spoil: RuntimeError: of its own"),
        (b"large", "too_large", "what the operations found has .* bytes on its way to the proxy, at most 48000 fit"),
        (b"many", "too_large", "what the operations found are 1000 values, at most 64 fit"),
    ],
)
def test_what_goes_wrong_reaches_the_script(stack: Stack, caller: Caller, number: bytes, code: str, error: str) -> None:
    reply = ask(caller, operation=b"spoil", number=number).final()
    assert (reply.code, reply.header("X-Status"), reply.header("X-Code")) == (404, "failed", code)
    assert re.fullmatch(error.replace("$", r"\$"), reply.header("X-Error").strip()), reply.header("X-Error")
    assert reply.header("X-Injected") == ""


def test_an_operation_that_takes_too_long(stack: Stack, caller: Caller) -> None:
    call = ask(caller, operation=b"spoil", number=b"slow", nap_ms=600)
    reply = call.final()
    assert reply.header("X-Status") == "timed_out"
    assert 0.6 <= reply.seconds - call.sent_seconds < 1.5, "from the sidecar, not through the backstop"


@pytest.mark.parametrize("operation", [b"nobody_has_this", b"no name"])
def test_an_operation_that_nobody_has(stack: Stack, caller: Caller, operation: bytes) -> None:
    call = ask(caller, operation=operation)
    reply = call.final()
    if reply.code == 503:
        assert "KEMI" in stack.proxy.script_text, "a script in Python is told at the door"
        return
    assert reply.header("X-Status") == "failed"
    assert reply.header("X-Code") in ("operation_unknown", "refused", "bad_arguments")
    assert operation.decode() in reply.header("X-Error")
    assert reply.seconds - call.sent_seconds < 1


def test_malformed_arguments(stack: Stack, caller: Caller) -> None:
    """A native script that forgot to encode is told so; in Python they are encoded by sipnap_kemi."""
    call = ask(caller, "raw", operation=b"find", number=b"sip:a@b")
    reply = call.final()
    if "KEMI" in stack.proxy.script_text:
        assert reply.header("X-Status") == "ok"
    else:
        assert (reply.header("X-Status"), reply.header("X-Code")) == ("failed", "bad_arguments")
        assert "b'sip:a@b' is no argument" in reply.header("X-Error")
    assert reply.seconds - call.sent_seconds < 1


def test_a_cancel_ends_the_operation(stack: Stack, caller: Caller) -> None:
    call = ask(caller, operation=b"spoil", number=b"slow", nap_ms=30_000)
    stack.held_for(call)
    call.cancel()
    assert call.final(2).code == 487
    wait_until(lambda: not stack.holds(call), 2, "the sidecar's entry is gone")


def test_a_lookup_with_hostile_values(stack: Stack, caller: Caller) -> None:
    number = b'a&number=7;"$ru" %41+\xff\xfe\xc3\xa9'
    reply = ask(caller, operation=b"find", number=number).final()
    assert reply.header("X-Status") == "ok"
    assert base64.b64decode(reply.header("X-Exactly")) == number
