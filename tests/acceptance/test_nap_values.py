"""Operations, what they find, and tasks at the proxy's end, with this test in the place of the shim."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from sipnap.client.keys import key_of
from sipnap.client.operations import arguments_of
from sipnap.shim.kamailio import datagram, nap_request
from sipnap.shim.kamailio.nap import Nap
from sipnap.v1 import suspension_pb2 as pb
from tests.acceptance.caller import Call, Caller, Reply
from tests.acceptance.hand_shim import HandShim
from tests.acceptance.proxy import Proxy
from tests.support.processes import wait_until

EVERY_BYTE = bytes(range(256))
HOSTILE = b'a&number=7;c=%26+d "e" $ru $(mb) \xff\xfe caf\xc3\xa9 ,:\\'


@pytest.fixture(scope="module", params=["operations.cfg", "operations_kemi.cfg"])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("proxy")
    with Proxy(directory, script=request.param, kemi_script="operations_script.py") as running:
        yield running


@pytest.fixture
def shim(proxy: Proxy) -> Iterator[HandShim]:
    with closing(HandShim(proxy)) as hand:
        hand.open_gate()
        yield hand


@pytest.fixture
def caller(proxy: Proxy) -> Iterator[Caller]:
    with Caller(proxy.ports.sip) as ready:
        yield ready


def invite(caller: Caller, user: str = "lookup", *, nap_ms: int = 60_000, **headers: bytes) -> Call:
    lines = {"operation": b"find", **headers}
    text = b"".join(b"X-%s: %s\r\n" % (name.capitalize().encode(), value) for name, value in lines.items())
    return caller.invite(user, nap_ms=nap_ms, headers=text)


def named(**values: bytes | int | bool | list[bytes | int | bool]) -> list[pb.NamedValue]:
    return [pb.NamedValue(name=name.removeprefix("second_"), value=wire(value)) for name, value in values.items()]


def wire(value: bytes | int | bool | list[bytes | int | bool]) -> pb.Value:
    if isinstance(value, bool):
        return pb.Value(boolean=value)
    if isinstance(value, int):
        return pb.Value(integer=value)
    if isinstance(value, bytes):
        return pb.Value(text=value)
    return pb.Value(list=pb.ValueList(values=[wire(item) for item in value]))


def found(reply: Reply) -> list[bytes | None]:
    """What both scripts show of `found`, `2_found`, `count` and `yes`; None: there is no such AVP."""
    shown = reply.header("X-Found").removeprefix("of ").split(" ")
    values = [None if text in ("<null>", "") else base64.b64decode(text) for text in shown[:2]]
    return values + [None if text == "<null>" else text.encode() for text in shown[2:]]


@pytest.mark.parametrize(
    "number", [b"4930123", HOSTILE, b"", b"x" * 8000, EVERY_BYTE.translate(None, b"\r\n\0").strip()]
)
def test_what_an_operation_is_given(shim: HandShim, caller: Caller, number: bytes) -> None:
    call = invite(caller, number=number, group=b"lookups")
    suspension = shim.suspension()
    (operation,) = suspension.operations
    assert (operation.name, operation.group, operation.prefix) == ("find", "lookups", "")
    assert arguments_of(operation.arguments) == {"number": number}
    assert suspension.state.request_uri == b"sip:lookup@127.0.0.1"
    assert suspension.state.via_branch == call.branch
    assert shim.resume(key_of(suspension.key)) == 200
    assert call.final().header("X-Status") == "ok"


def test_several_operations(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, "several", number=b"1&2", second=b"enum")
    suspension = shim.suspension()
    first, second, third = suspension.operations
    assert (first.name, first.group, first.prefix) == ("find", "", "")
    assert (second.name, second.group, second.prefix) == ("enum", "", "2_")
    assert arguments_of(second.arguments) == {"name": b"", "number": b"1&2"}
    assert (third.name, third.group, third.prefix, list(third.arguments)) == ("fourth", "g4", "3_", [])
    values = [*named(found=b"one", count=1), pb.NamedValue(name="2_found", value=pb.Value(text=b"two"))]
    assert shim.resume(key_of(suspension.key), values=values) == 200
    assert found(call.final()) == [b"one", b"two", b"1", None]


def test_variables_are_forgotten(shim: HandShim, caller: Caller) -> None:
    """Whatever an earlier request of this or another worker asked for, a plain nap asks for nothing."""
    calls = [invite(caller, "several", number=b"1", second=b"enum", group=b"g") for _ in range(12)]
    refused = [invite(caller, "several", number=b"1", second=b"enum", nap_ms=0) for _ in range(12)]
    for call in calls:
        call.send()  # retransmitted: tm ends the script in the middle of the suspend
    keys = [shim.suspended() for _ in calls]
    for call in refused:
        assert call.final().code == 503
    plain = [invite(caller, "plain") for _ in range(24)]
    suspensions = [shim.suspension() for _ in plain]
    assert [len(suspension.operations) for suspension in suspensions] == [0] * len(plain)
    lookups = [invite(caller, "lookup", number=b"2") for _ in range(12)]
    for _ in lookups:
        suspension = shim.suspension()
        assert [(operation.name, operation.group) for operation in suspension.operations] == [("find", "")]
        keys.append(key_of(suspension.key))
    for key in (*keys, *(key_of(suspension.key) for suspension in suspensions)):
        assert shim.resume(key) == 200
    for call in (*calls, *plain, *lookups):
        call.final()


@pytest.mark.parametrize(
    "value",
    [b"sip:49@gw1", b"", HOSTILE, EVERY_BYTE, b"a:b;c,d", b"\r\nX-Injected: yes\r\n", b"0", b"\0", b"v" * 35_000],
    ids=lambda value: repr(value[:20]),
)
def test_any_bytes_reach_the_script(shim: HandShim, caller: Caller, value: bytes) -> None:
    call = invite(caller, number=b"1")
    assert shim.resume(shim.suspended(), values=named(found=value, count=2**31 - 1, yes=True)) == 200
    reply = call.final()
    assert (reply.header("X-Status"), reply.header("X-Injected")) == ("ok", "")
    assert found(reply) == [value or None, None, b"2147483647", b"1"]


@pytest.mark.parametrize("count", [0, -1, -(2**31) + 1, 2**31, -(2**31), 2**63 - 1, -(2**63)])
def test_integers(shim: HandShim, caller: Caller, count: int) -> None:
    """Those beyond 32 bits arrive as text, and print the same."""
    call = invite(caller, number=b"1")
    assert shim.resume(shim.suspended(), values=named(count=count, yes=False)) == 200
    assert found(call.final())[2:] == [b"%d" % count, b"0"]


def test_lists_keep_their_order(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, number=b"1")
    values = named(several=[b"sip:first@h;x", b"", 3], found=b"after", empty=[])
    assert shim.resume(shim.suspended(), values=values) == 200
    reply = call.final()
    several = [base64.b64decode(text) for text in reply.header("X-Several").removeprefix("are ").split(" ")]
    assert several == [b"sip:first@h;x", b"", b"3"]
    assert found(reply)[0] == b"after"


def test_as_many_values_as_fit(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, number=b"1")
    many = named(**{f"v{number}": b"%d" % number for number in range(61)}, found=b"last", count=1, yes=True)
    assert len(many) == nap_request.MOST_VALUES
    assert shim.resume(shim.suspended(), values=many) == 200
    assert found(call.final()) == [b"last", None, b"1", b"1"]

    call = invite(caller, number=b"1")
    assert shim.resume(shim.suspended(), values=many + named(more=1)) == 200
    reply = call.final()
    assert (reply.header("X-Status"), reply.header("X-Code")) == ("failed", "too_large")
    assert found(reply) == [None, None, None, None]


def test_values_that_do_not_fit(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, number=b"1")
    assert shim.resume(shim.suspended(), values=named(found=b"v" * 40_000, count=1)) == 200
    reply = call.final()
    assert (reply.header("X-Status"), reply.header("X-Code")) == ("failed", "too_large")
    assert "at most 48000 fit" in reply.header("X-Error")
    assert found(reply) == [None, None, None, None]


def test_an_operation_that_failed(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, "several", number=b"1", second=b"enum")
    status, error = pb.CONTINUE_STATUS_FAILED, "enum: SERVFAIL\r\nfrom 192.0.2.1"
    values = named(found=b"of the other")
    assert shim.resume(shim.suspended(), status=status, error=error, error_code="dns_servfail", values=values) == 200
    reply = call.final()
    assert (reply.header("X-Status"), reply.header("X-Code")) == ("failed", "dns_servfail")
    assert reply.header("X-Error") == "enum: SERVFAIL from 192.0.2.1"
    assert found(reply)[0] == b"of the other"


@pytest.mark.parametrize("second_status", [pb.CONTINUE_STATUS_OK, None])
def test_an_earlier_nap_s_values_are_gone(shim: HandShim, caller: Caller, second_status: int | None) -> None:
    """Also when the second nap is lost, and nobody says anything."""
    call = invite(caller, "twice", number=b"1")
    key = shim.suspended()
    name = nap_request.nap_name(key)
    values = named(found=b"first", count=1, several=[b"a", b"b"])
    shim.send(
        nap_request.continue_request(
            name, pb.CONTINUE_STATUS_FAILED, error="of the first", error_code="first", values=values
        )
    )
    second, answer = sorted((shim.receive(), shim.receive()), key=lambda m: isinstance(m, datagram.Answer))
    assert isinstance(answer, datagram.Answer)
    assert isinstance(second, Nap)
    assert answer.result == 200
    if second_status is not None:
        assert shim.resume(key_of(second.suspension.key), status=second_status) == 200
    reply = call.final()
    assert found(reply) == [None, None, None, None]
    assert reply.header("X-Names") == "<null>"
    expected = ("ok", "", "") if second_status else ("lost", "lost", "no continue came in time")
    assert (reply.header("X-Status"), reply.header("X-Code"), reply.header("X-Error")) == expected


def test_a_second_nap_s_values_replace_the_first_s(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, "twice", number=b"1", second=b"again")
    shim.send(
        nap_request.continue_request(
            nap_request.nap_name(shim.suspended()), pb.CONTINUE_STATUS_OK, values=named(found=b"first", count=1)
        )
    )
    received = (shim.receive(), shim.receive())
    (second,) = (message for message in received if isinstance(message, Nap))
    assert [operation.name for operation in second.suspension.operations] == ["again"]
    assert shim.resume(key_of(second.suspension.key), values=named(found=b"second", yes=True)) == 200
    assert found(call.final()) == [b"second", None, None, b"1"]


def test_a_repetition_for_an_earlier_nap_brings_no_values(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, "twice", number=b"1")
    first = shim.suspended()
    request = nap_request.continue_request(
        nap_request.nap_name(first), pb.CONTINUE_STATUS_OK, values=named(found=b"first")
    )
    shim.send(request)
    received = (shim.receive(), shim.receive())
    (second,) = (message for message in received if isinstance(message, Nap))
    assert shim.ask(request).result == 481
    assert shim.resume(key_of(second.suspension.key)) == 200
    assert found(call.final()) == [None, None, None, None]


def noted(proxy: Proxy, data: bytes) -> list[tuple[str, str, str]]:
    """Status, error code and transaction of each run of the task with these data."""
    wanted = hashlib.md5(data).hexdigest()
    return re.findall(rf"acceptance: task \[(.*?)\] \[(.*?)\] \[{wanted}\] in \[(.*?)\]", proxy.output())


def task(shim: HandShim, caller: Caller, data: bytes, *, route: bytes = b"note", nap_ms: int = 0) -> pb.Suspension:
    assert invite(caller, "task", number=data, route=route, nap_ms=nap_ms).final().reason == "Task"
    message = shim.receive()
    assert isinstance(message, datagram.Task)
    assert message.boot_epoch > 0
    return message.suspension


def run(shim: HandShim, number: int, data: bytes, *, route: str = "note", status: int = 1, error: str = "") -> int:
    epoch = shim.open_gate()
    name = b"%d.1.0.%d" % (number, epoch)
    return shim.ask(nap_request.task_request(name, status, route=route, data=data, error=error)).result


@pytest.mark.parametrize("data", [b"call-1", HOSTILE, b"", b"0", b"d" * 20_000], ids=lambda data: repr(data[:12]))
def test_a_task_there(shim: HandShim, caller: Caller, data: bytes) -> None:
    suspension = task(shim, caller, data, nap_ms=250)
    assert (suspension.resume_route, suspension.data) == ("note", data)
    assert suspension.delay.ToMilliseconds() == 250
    assert not suspension.operations


@pytest.mark.parametrize("data", [b"back", HOSTILE + b"1", EVERY_BYTE, b"b" * 35_000], ids=lambda data: repr(data[:12]))
def test_a_task_back(proxy: Proxy, shim: HandShim, data: bytes) -> None:
    number = len(data)
    assert run(shim, number, data) == 200
    wait_until(lambda: noted(proxy, data), 3, "the task's route has run")
    assert noted(proxy, data) == [("ok", "", "<null>")]


def test_a_task_runs_once(proxy: Proxy, shim: HandShim) -> None:
    for _ in range(5):
        assert run(shim, 4711, b"once") == 200
    assert run(shim, 4712, b"after") == 200
    wait_until(lambda: noted(proxy, b"after"), 3, "the other task has run")
    assert len(noted(proxy, b"once")) == 1


def test_a_task_that_ends_the_script_is_answered_for(proxy: Proxy, shim: HandShim) -> None:
    assert run(shim, 4713, b"ends", route="ends") == 200
    wait_until(lambda: noted(proxy, b"ends"), 3, "the task has run")
    assert run(shim, 4713, b"ends", route="ends") == 200
    assert run(shim, 4714, b"next") == 200
    wait_until(lambda: noted(proxy, b"next"), 3, "the next task has run")
    assert len(noted(proxy, b"ends")) == 1
    assert "acceptance: a task has suspended something" not in proxy.output()


def test_a_task_that_its_group_did_not_let_pass(proxy: Proxy, shim: HandShim) -> None:
    assert run(shim, 4715, b"late", status=pb.CONTINUE_STATUS_TIMED_OUT, error="waited for too long") == 200
    wait_until(lambda: noted(proxy, b"late"), 3, "the task has run")
    assert noted(proxy, b"late") == [("timed_out", "failed", "<null>")]


def test_a_task_for_a_route_that_is_not_there(proxy: Proxy, shim: HandShim, caller: Caller) -> None:
    assert run(shim, 4716, b"nowhere", route="NOT_THERE") == 404
    proxy.wait_output("task for a route that this script does not have: NOT_THERE", 2)
    call = invite(caller, "task", number=b"x", route=b"NOT_THERE", nap_ms=0)
    assert call.final().reason == "Refused At The Door"
    assert shim.is_silent()


def test_a_task_of_a_group(shim: HandShim, caller: Caller) -> None:
    call = invite(caller, "task", number=b"x", route=b"note", group=b"reports", nap_ms=0)
    assert call.final().reason == "Task"
    message = shim.receive()
    assert isinstance(message, datagram.Task)
    assert [(operation.name, operation.group) for operation in message.suspension.operations] == [("pass", "reports")]
    assert message.suspension.delay.ToMilliseconds() == datagram.TASK_WAIT_MS
    assert not task(shim, caller, b"without").operations, "the group of the task before is forgotten"


def test_tasks_are_refused_at_the_door(proxy: Proxy, shim: HandShim, caller: Caller) -> None:
    for nap_ms in (-1, 100_001):
        call = invite(caller, "task", number=b"x", route=b"note", group=b"g", nap_ms=nap_ms)
        assert call.final().reason == "Refused At The Door"
        proxy.wait_output(rf"task refused: {nap_ms} ms, and it has to be from 0 to 100000", 2)
    call = invite(caller, "task", number=b"x" * 30_000, route=b"note", nap_ms=0)
    assert call.final().reason == "Task"
    assert isinstance(shim.receive(), datagram.Task)
    shim.ask(nap_request.gate_request(2, is_open=False))
    call = invite(caller, "task", number=b"x", route=b"note", group=b"g", nap_ms=0)
    assert call.final().reason == "Refused At The Door"
    assert shim.is_silent()
    shim.open_gate()
    assert not task(shim, caller, b"after").operations, "the group of those refused is forgotten"
