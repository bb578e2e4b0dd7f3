"""Operations and tasks of the Python front end: real processes, real UDP."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sipnap.client.sync import Client
from tests.integration.test_sip_front_end import AT_ONCE_SECONDS, MAX_LATE_SECONDS, FrontEnd
from tests.support.processes import Sidecar, wait_until
from tests.support.sip_caller import Reply, SipCaller

ROUTES = Path(__file__).parents[1] / "support" / "sip_operation_routes.py"
OPERATIONS = ("--operations", "tests.support.sip_operations", "--group", "name=lookups,workers=8")
Parts = tuple[Sidecar, FrontEnd]


@pytest.fixture(scope="module")
def shared() -> Iterator[Parts]:
    with Sidecar(*OPERATIONS) as sidecar, FrontEnd(sidecar.target, routes=ROUTES) as front_end:
        yield sidecar, front_end


@pytest.fixture
def caller(shared: Parts) -> Iterator[SipCaller]:
    with SipCaller(*shared[1].address) as caller:
        yield caller


@pytest.fixture
def client(shared: Parts) -> Iterator[Client]:
    with Client(shared[0].target) as client:
        client.status()
        yield client


def test_each_call_gets_its_own_answer(caller: SipCaller, client: Client) -> None:
    calls = {caller.call(f"directory-{number}"): number for number in range(1000, 1080)}  # ten for each worker
    finals: dict[str, Reply] = {}
    deadline = time.monotonic() + 10
    while len(finals) < len(calls) and time.monotonic() < deadline:
        caller.read(0.05)
        finals = {reply.header("call-id").decode(): reply for reply in caller.replies if reply.code >= 200}
    for call, number in calls.items():
        final = finals[call.call_id]
        call.send("ACK", final.header("to"))
        assert (final.code, final.reason) == (302, "ok 4")
        assert final.header("contact") == f"<sip:{number}@192.0.2.7>".encode()
    late_seconds = max(final.at for final in finals.values()) - min(call.sent_at for call in calls)
    assert 2 <= late_seconds < 5, "eighty lookups of 0.2 s by eight workers"
    wait_until(lambda: not list(client.list("sip")), 2, "nothing left at the sidecar")


def test_an_answer_does_not_wait_for_the_timeout(caller: SipCaller) -> None:
    call = caller.call("directory-12")
    final = call.await_final()
    assert 0.2 <= final.at - call.sent_at < 0.2 + MAX_LATE_SECONDS


def test_two_operations_in_one_nap(caller: SipCaller) -> None:
    call = caller.call("two-12")
    final = call.await_final()
    assert (final.reason, final.header("contact")) == ("ok sip:1212@192.0.2.7", b"<sip:12@192.0.2.7>")
    assert final.at - call.sent_at < 0.4, "at the same time"


def test_what_one_found_is_there_though_the_other_failed(caller: SipCaller) -> None:
    final = caller.call("both-12").await_final()
    assert final.reason == "failed no_luck: fail: it does not work"
    assert final.header("contact") == b"<sip:12@192.0.2.7>"


def test_a_resume_route_finds_the_result(caller: SipCaller) -> None:
    final = caller.call("route-12").await_final()
    assert (final.reason, final.header("contact")) == ("resumed ok", b"<sip:12@192.0.2.7>")


def test_failures_have_a_code_and_a_text(caller: SipCaller) -> None:
    assert caller.call("fail").await_final().reason == "failed no_luck: fail: it does not work"
    unknown = caller.call("unknown")
    final = unknown.await_final()
    assert final.reason.startswith("failed ")
    assert "operation_unknown" in final.reason
    assert final.at - unknown.sent_at < AT_ONCE_SECONDS


def test_retries_are_the_operations_own_business(caller: SipCaller) -> None:
    assert caller.call("flaky").await_final().reason.startswith("ok ")


def test_a_timeout_frees_the_worker(caller: SipCaller, shared: Parts) -> None:
    call = caller.call("hang-0.5")
    final = call.await_final()
    assert final.reason.startswith("timed_out timeout: hang: ")
    assert 0.5 <= final.at - call.sent_at < 0.5 + MAX_LATE_SECONDS
    shared[0].wait_output(f"operation cancelled {call.call_id}", 2)


def test_a_cancel_ends_the_operation(caller: SipCaller, client: Client, shared: Parts) -> None:
    call = caller.call("hang")
    call.await_code(100)
    wait_until(lambda: list(client.list("sip")), 2, "the suspension in the list")
    started = time.monotonic()
    call.send("CANCEL")
    terminated = call.await_final()
    assert terminated.code == 487
    assert terminated.at - started < AT_ONCE_SECONDS
    shared[0].wait_output(f"operation cancelled {call.call_id}", 2)
    wait_until(lambda: not list(client.list("sip")), 0.5, "the suspension gone")


def test_a_call_runs_a_task_which_runs_another(caller: SipCaller, shared: Parts) -> None:
    call = caller.call("task-0.3")
    final = call.await_final()
    assert final.reason == "accepted True"
    assert final.at - call.sent_at < AT_ONCE_SECONDS
    shared[1].wait_output(f"task of call {call.call_id} status=ok", 2)
    assert time.monotonic() - call.sent_at >= 0.3
    shared[1].wait_output(f"task of task {call.call_id} uri=sip:try3@192.0.2.7", 2)


def test_another_program_runs_a_task(client: Client, shared: Parts) -> None:
    wait_until(lambda: not list(client.list("sip")), 2, "the tasks before answered for")
    before = client.status().counters
    key = client.run_task("sip", "SLOW", b"0.2")
    shared[1].wait_output(f"slow task done {key}", 2)
    client.run_task("sip", "RAISES")
    shared[1].wait_output(r"route raised an exception route=RAISES error=LookupError", 2)
    wait_until(lambda: client.status().counters.applied == before.applied + 2, 2, "APPLIED twice")
    client.run_task("sip", "RESUME")  # a route of calls
    shared[1].wait_output(r"no such task.*RESUME", 2)
    wait_until(lambda: client.status().counters.rejected == before.rejected + 1, 2, "REJECTED at the sidecar")


def test_the_example(shared: Parts) -> None:
    routes = Path(__file__).parents[2] / "examples" / "sip" / "routes.py"
    with (
        FrontEnd(shared[0].target, routes=routes, name="example") as front_end,
        SipCaller(*front_end.address) as caller,
    ):
        found = caller.call("+4930123").await_final()
        assert (found.code, found.header("contact")) == (302, b"<sip:bob@192.0.2.9>")
        assert caller.call("+4999").await_final().code == 404
        front_end.wait_output(r"number not in DNS number=\+4999", 3)


def test_a_drain_waits_for_a_task() -> None:
    with Sidecar() as sidecar, FrontEnd(sidecar.target, routes=ROUTES) as front_end, Client(sidecar.target) as client:
        client.run_task("sip", "SLOW", b"1")
        front_end.wait_output("slow task begun", 3)
        front_end.signal(signal.SIGTERM)
        assert front_end.wait(5) == 0
        front_end.wait_output("slow task done", 1)
        assert client.status().counters.applied == 1


def test_a_task_that_runs_while_the_sidecar_is_killed_runs_once(tmp_path: Path) -> None:
    journal = ("--journal", f"sqlite:{tmp_path}/journal.sqlite3")
    with Sidecar(*journal) as sidecar, FrontEnd(sidecar.target, routes=ROUTES) as front_end:
        with Client(sidecar.target) as client:
            key = client.run_task("sip", "SLOW", b"1.5")
            front_end.wait_output("slow task begun", 3)
        sidecar.kill()
        with Sidecar(*journal, port=sidecar.port) as again, Client(again.target) as client:
            wait_until(lambda: client.status().continuing == 1, 5, "the task sent again")
            front_end.wait_output(f"slow task done {key}", 3)
            wait_until(lambda: client.status().counters.applied == 1, 2, "APPLIED")
        assert front_end.output().count("slow task done") == 1


def test_a_killed_sidecar_does_the_operation_again() -> None:
    with (
        Sidecar(*OPERATIONS) as sidecar,
        FrontEnd(sidecar.target, routes=ROUTES) as front_end,
        SipCaller(*front_end.address) as caller,
        Client(sidecar.target) as client,
    ):
        client.status()
        for number in range(20):  # the last of them wait for one of eight workers
            caller.call(f"directory-{number}")
        wait_until(lambda: len(list(client.list())) == 20, 2, "all suspended")
        sidecar.kill()
        with Sidecar(*OPERATIONS, port=sidecar.port):
            wait_until(lambda: len(_contacts(caller)) == 20, 5, "all answered")
            assert _contacts(caller) == {b"<sip:%d@192.0.2.7>" % number for number in range(20)}


def _contacts(caller: SipCaller) -> set[bytes]:
    caller.read_all()
    return {reply.header("contact") for reply in caller.replies if reply.code == 302}
