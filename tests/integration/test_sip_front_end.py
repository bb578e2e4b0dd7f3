"""The Python SIP front end: real process, real UDP, real sidecar process."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sipnap.client.keys import SuspensionKey, key_of
from sipnap.client.sync import Client
from tests.support.processes import Process, Sidecar, free_port, sipnap, wait_until
from tests.support.sip_caller import Reply, SipCall, SipCaller

ROUTES = Path(__file__).parents[1] / "support" / "sip_routes.py"
AT_ONCE_SECONDS = 0.3
MAX_LATE_SECONDS = 0.5


class FrontEnd(Process):
    """`sipnap shim sip` on a free port."""

    def __init__(self, sidecar_target: str, *flags: str | Path, routes: Path = ROUTES, name: str = "sip") -> None:
        super().__init__(
            "front-end",
            sipnap(
                "shim", "sip", "--sidecar", sidecar_target, "--bind", "127.0.0.1:0", "--routes", routes,
                "--front-end-id", name, "--margin-seconds", "0.5", *flags,
            ),
            ready=r"^sipnap shim sip: ready on ",
        )  # fmt: skip
        host, port = self.wait_output(r"^sipnap shim sip: ready on (\S+):(\d+)$").groups()
        self.address = (host, int(port))


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Sidecar, FrontEnd]]:
    with Sidecar() as sidecar, FrontEnd(sidecar.target) as front_end:
        yield sidecar, front_end


@pytest.fixture
def caller(shared: tuple[Sidecar, FrontEnd]) -> Iterator[SipCaller]:
    with SipCaller(*shared[1].address) as caller:
        yield caller


@pytest.fixture
def client(shared: tuple[Sidecar, FrontEnd]) -> Iterator[Client]:
    with Client(shared[0].target) as client:
        client.status()
        yield client


def test_async_route_resumes_in_the_named_route_and_never_early(caller: SipCaller) -> None:
    call = caller.call("nap-0.5")
    assert call.await_code(100).at - call.sent_at < AT_ONCE_SECONDS
    final = call.await_final()
    assert (final.code, final.reason) == (302, "Moved ok naps 1")
    assert final.header("contact") == b"<sip:bob@192.0.2.4>"
    assert 0.5 <= final.at - call.sent_at < 0.5 + MAX_LATE_SECONDS


def test_async_sleep_goes_on_with_the_next_line(caller: SipCaller) -> None:
    call = caller.call("sleep")
    final = call.await_final()
    assert (final.code, final.reason) == (486, "kept ok")
    assert 0.4 <= final.at - call.sent_at < 0.4 + MAX_LATE_SECONDS


def test_a_call_naps_several_times(caller: SipCaller) -> None:
    call = caller.call("twice")
    assert call.await_final().reason == "Moved ok naps 3"


def test_a_provisional_response_before_the_nap(caller: SipCaller) -> None:
    call = caller.call("ring")
    ringing = call.await_code(180)
    assert ringing.header("x-ring") == b"1"
    final = call.await_final()
    assert final.code == 302
    assert ringing.header("to") == final.header("to")  # one tag for all responses of the transaction


def test_other_methods_nap_too(caller: SipCaller) -> None:
    call = caller.call("nap-0.2", method="OPTIONS")
    assert call.await_final().code == 302
    assert [reply.code for reply in call.replies] == [302]  # no 100 for anything but INVITE


HOSTILE_FROM = [
    b'"Doe, \\"John\\"; tag=evil, <sip:x@y>" <sip:a%00b:c,d@example.org;x=%22>',
    b'"\xff\xfe\x85\xe2\x80\xa8 not UTF-8" <sip:\xc3\xa9@example.org>',
    b'"' + b"\\\\%$(ru)$$'" * 300 + b'" <sip:a@b>',
    b'"folded\r\n  twice\r\n\tover" <sip:a@b>',
    b'"]}\'`{$avp(x)}:,;|&" <sip:a@b?x=y>',
]


@pytest.mark.parametrize("from_", HOSTILE_FROM)
def test_hostile_headers_arrive_intact_and_change_nothing(
    caller: SipCaller, client: Client, shared: tuple[Sidecar, FrontEnd], from_: bytes
) -> None:
    call = caller.call("nap-0.5", from_=from_)
    call.await_code(100)
    unfolded = from_.replace(b"\r\n  ", b" ").replace(b"\r\n\t", b" ") + b";tag=" + call.branch[-8:].encode()
    wait_until(lambda: list(client.list("sip")), 2, "the suspension in the list")
    (info,) = client.list("sip")
    state = info.suspension.state
    assert getattr(state, "from") == unfolded
    assert (state.method, state.request_uri) == (b"INVITE", b"sip:nap-0.5@example.org")
    assert (state.to, state.call_id, state.cseq) == (b"<sip:bob@example.org>", call.call_id.encode(), 1)
    assert state.via_branch == call.branch.encode()
    assert (state.source_ip, state.source_port) == caller.address
    assert {avp.name: avp.text or avp.integer for avp in state.avps} == {"from": unfolded, "number": 7}
    assert info.suspension.resume_route == "RESUME"
    final = call.await_final()
    assert final.code == 302
    assert final.header("from") == unfolded


def test_header_values_reach_the_route_and_go_back_unchanged(caller: SipCaller) -> None:
    call = caller.call("header", method="MESSAGE", more=b"X-Test:  a \xff b ", from_=HOSTILE_FROM[1])
    final = call.await_final()
    assert final.header("x-seen") == b"a \xff b"
    assert final.header("x-from") == final.header("from")


def test_a_request_beyond_8_kilobytes_is_served(caller: SipCaller) -> None:
    call = caller.call("nap-0.2", more=b"Subject: " + b"x" * 20_000)
    assert call.await_final().code == 302


def test_cancel_during_a_nap(caller: SipCaller, client: Client, shared: tuple[Sidecar, FrontEnd]) -> None:
    call = caller.call("long")
    call.await_code(100)
    wait_until(lambda: list(client.list("sip")), 2, "the suspension in the list")
    started = time.monotonic()
    call.send("CANCEL")
    cancel_ok = call.await_code(200, method="CANCEL")
    terminated = call.await_final()
    assert terminated.code == 487
    assert terminated.at - started < AT_ONCE_SECONDS
    assert cancel_ok.header("to") == terminated.header("to")  # RFC 3261 9.2
    wait_until(lambda: not list(client.list("sip")), 0.1, "the suspension gone")
    shared[1].wait_output(rf"route cancelled {call.call_id} replied=False", 2)
    assert {reply.code for reply in call.replies} == {100, 200, 487}


def test_cancel_does_not_end_what_is_no_invite(caller: SipCaller) -> None:
    call = caller.call("nap-0.3", method="OPTIONS")
    call.send("CANCEL")
    call.await_code(200, method="CANCEL")
    assert call.await_final().code == 302


def test_cancel_of_nothing_is_481(caller: SipCaller) -> None:
    call = SipCall(caller, "x", "INVITE", b"", None)
    call.send("CANCEL")
    call.await_code(481, method="CANCEL")


def test_retransmissions_are_absorbed(caller: SipCaller, client: Client) -> None:
    accepted_before = client.status().counters.accepted
    call = caller.call("nap-0.5")
    call.await_code(100)
    call.send()
    call.send()
    final = call.await_final(ack=False)
    wait_until(lambda: [r.code for r in call.replies].count(302) >= 2, 3, "the 302 again until its ACK")
    assert [reply.code for reply in call.replies].count(100) == 3
    assert {reply.datagram for reply in call.replies if reply.code == 302} == {final.datagram}
    call.send("ACK", final.header("to"))
    assert client.status().counters.accepted == accepted_before + 1
    call.send()  # a late retransmission of the INVITE: the final response again, no second nap
    wait_until(lambda: [r.code for r in call.replies].count(302) >= 3, 2, "the 302 for the late INVITE")
    assert client.status().counters.accepted == accepted_before + 1


def test_routes_may_catch_exception_around_async_route(caller: SipCaller) -> None:
    assert caller.call("guarded").await_final().code == 302


def test_a_route_that_does_not_exist_ends_in_500_and_is_rejected(
    caller: SipCaller, client: Client, shared: tuple[Sidecar, FrontEnd]
) -> None:
    rejected_before = client.status().counters.rejected
    assert caller.call("nowhere").await_final().code == 500
    shared[1].wait_output(r"no such route.*route=.*NOT_THERE", 2)
    wait_until(lambda: client.status().counters.rejected == rejected_before + 1, 2, "REJECTED at the sidecar")


def test_exceptions_end_in_500_with_one_traceback(caller: SipCaller, shared: tuple[Sidecar, FrontEnd]) -> None:
    for _ in range(3):
        assert caller.call("raises").await_final().code == 500
    shared[1].wait_output(r"route raised an exception.*LookupError", 2)
    assert shared[1].output().count("Traceback (most recent call last)") == 1
    assert caller.call("exits").await_final().code == 500
    assert shared[1].exit_code is None


def test_a_route_without_a_reply_ends_in_500(caller: SipCaller) -> None:
    assert caller.call("silent").await_final().code == 500


def test_an_avp_that_cannot_travel_ends_in_500(caller: SipCaller, client: Client) -> None:
    assert caller.call("bad-avp").await_final().code == 500
    assert not list(client.list("sip"))


@pytest.mark.parametrize(
    ("user", "method", "more"),
    [
        ("nap-101", "INVITE", b""),  # over --max-seconds
        ("nap-0", "INVITE", b""),
        ("nap--1", "INVITE", b""),
        ("nap-nan", "INVITE", b""),
        ("nap-inf", "INVITE", b""),
        ("nap-40", "OPTIONS", b""),  # its sender gives up after 32 s
        ("nap-3", "INVITE", b"Expires: 3"),  # no time left for the margin
    ],
)
def test_what_cannot_fit_is_refused_at_the_door(caller: SipCaller, user: str, method: str, more: bytes) -> None:
    call = caller.call(user, method=method, more=more)
    final = call.await_final()
    assert (final.code, final.reason) == (503, "Refused")
    assert final.at - call.sent_at < AT_ONCE_SECONDS


def test_expires_ends_the_call(caller: SipCaller) -> None:
    call = caller.call("hangs", more=b"Expires: 1")
    final = call.await_final()
    assert final.code == 487
    assert 0.9 < final.at - call.sent_at < 1.0 + MAX_LATE_SECONDS


def test_t_suspend_and_another_program_that_resumes(caller: SipCaller, client: Client) -> None:
    call = caller.call("suspended")
    key = SuspensionKey.parse(call.await_code(183).header("x-key").decode())
    assert client.suspend_route(key, "RESUME", 0.2).key == key.to_message()
    assert call.await_final().code == 302


def test_a_continue_for_no_transaction_is_gone(client: Client, shared: tuple[Sidecar, FrontEnd]) -> None:
    gone_before = client.status().counters.gone
    client.suspend_route(SuspensionKey("sip", 0, 1, 2, 1), "RESUME", 0.05)
    wait_until(lambda: client.status().counters.gone == gone_before + 1, 2, "GONE at the sidecar")


def test_malformed_requests_are_told_so(caller: SipCaller) -> None:
    call = SipCall(caller, "quick", "INVITE", b"", None)
    caller.socket.send(call.request("INVITE").replace(b"CSeq: 1 INVITE", b"CSeq: 1 OPTIONS"))
    assert call.await_code(400, method="OPTIONS").reason == "Bad CSeq"
    call = SipCall(caller, "quick", "INVITE", b"", None)
    caller.socket.send(call.request("INVITE").replace(b" SIP/2.0\r\nVia", b" SIP/3.0\r\nVia"))
    call.await_code(505)


def test_load(caller: SipCaller, client: Client) -> None:
    calls = []
    started = time.monotonic()
    for number in range(400):
        calls.append(caller.call("nap-1"))
        while (pause := started + number / 200 - time.monotonic()) > 0:  # 200 calls/s
            caller.read(pause)
    finals: dict[str, Reply] = {}
    while len(finals) < len(calls) and time.monotonic() < started + 10:
        caller.read(0.1)
        finals = {reply.header("call-id").decode(): reply for reply in reversed(caller.replies) if reply.code >= 200}
    for call in calls:
        call.send("ACK", finals[call.call_id].header("to"))
    late = sorted(finals[call.call_id].at - call.sent_at - 1 for call in calls)
    print(f"late p50 {late[200] * 1e3:.1f} ms, p99 {late[395] * 1e3:.1f} ms")
    assert late[0] >= 0
    assert late[-1] < 1
    assert {reply.code for reply in caller.replies} == {100, 302}
    wait_until(lambda: not list(client.list("sip")), 2, "nothing left at the sidecar")


# What follows takes processes of its own.


def test_without_a_sidecar_naps_are_refused_and_accepted_as_soon_as_it_is_there() -> None:
    port = free_port()
    with FrontEnd(f"127.0.0.1:{port}") as front_end, SipCaller(*front_end.address) as caller:
        assert "no sidecar yet" in front_end.output()
        for user in ("nap-1", "sleep"):
            call = caller.call(user)
            final = call.await_final()
            assert (final.code, final.reason) == (503, "Refused")
            assert final.at - call.sent_at < AT_ONCE_SECONDS
        with Sidecar(port=port):
            front_end.wait_output("naps are accepted", 5)
            assert caller.call("nap-0.2").await_final().code == 302


def test_killed_sidecar_the_backstop_ends_the_nap() -> None:
    with Sidecar() as sidecar, FrontEnd(sidecar.target) as front_end, SipCaller(*front_end.address) as caller:
        routed = caller.call("nap-0.5")
        slept = caller.call("sleep")
        with Client(sidecar.target) as client:
            wait_until(lambda: len(list(client.list())) == 2, 2, "both suspended")
        sidecar.kill()
        final = slept.await_final()
        assert (final.code, final.reason) == (486, "kept lost")
        assert 0.9 <= final.at - slept.sent_at < 0.9 + MAX_LATE_SECONDS  # the nap and the margin
        assert routed.await_final().reason == "Moved lost naps 1"
        refused = caller.call("nap-0.5")
        assert refused.await_final().code == 503


def test_restarted_sidecar_gets_the_nap_again() -> None:
    with Sidecar() as sidecar, FrontEnd(sidecar.target) as front_end, SipCaller(*front_end.address) as caller:
        call = caller.call("nap-3")
        with Client(sidecar.target) as client:
            wait_until(lambda: list(client.list()), 2, "suspended")
        sidecar.kill()
        with Sidecar(port=sidecar.port):
            final = call.await_final()
            assert final.reason == "Moved ok naps 1"
            assert 3 <= final.at - call.sent_at < 3 + MAX_LATE_SECONDS


def test_refused_by_the_sidecar_resumes_as_failed() -> None:
    with (
        Sidecar("--max-seconds", "1") as sidecar,
        FrontEnd(sidecar.target) as front_end,
        SipCaller(*front_end.address) as caller,
    ):
        call = caller.call("nap-5")
        final = call.await_final()
        assert final.reason == "Moved failed naps 1"
        assert final.at - call.sent_at < 1


def test_first_signal_drains() -> None:
    with Sidecar() as sidecar, FrontEnd(sidecar.target) as front_end, SipCaller(*front_end.address) as caller:
        napping = caller.call("nap-1")
        napping.await_code(100)
        front_end.signal(signal.SIGTERM)
        front_end.wait_output("draining", 2)
        refused = caller.call("nap-1")
        assert refused.await_final().code == 503
        assert napping.await_final().code == 302
        assert front_end.wait(5) == 0


def test_a_drain_answers_what_does_not_end() -> None:
    with (
        Sidecar() as sidecar,
        FrontEnd(sidecar.target, "--drain-seconds", "0.3") as front_end,
        SipCaller(*front_end.address) as caller,
    ):
        call = caller.call("long")
        call.await_code(100)
        front_end.signal(signal.SIGINT)
        assert call.await_final().code == 503
        assert front_end.wait(5) == 0
        with Client(sidecar.target) as client:
            wait_until(lambda: not list(client.list()), 1, "cancelled at the sidecar")


def test_second_signal_ends_at_once() -> None:
    with Sidecar() as sidecar, FrontEnd(sidecar.target) as front_end, SipCaller(*front_end.address) as caller:
        caller.call("long").await_code(100)
        front_end.signal(signal.SIGTERM)
        front_end.wait_output("draining", 2)
        front_end.signal(signal.SIGTERM)
        assert front_end.wait(1) == 1


def test_transactions_are_bounded() -> None:
    with (
        Sidecar() as sidecar,
        FrontEnd(sidecar.target, "--max-transactions", "2") as front_end,
        SipCaller(*front_end.address) as caller,
    ):
        napping = [caller.call("nap-1") for _ in range(2)]
        for call in napping:
            call.await_code(100)
        assert caller.call("quick").await_final().code == 503
        assert [call.await_final().code for call in napping] == [302, 302]


def test_hostile_datagrams_do_not_hurt(shared: tuple[Sidecar, FrontEnd]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with FrontEnd(shared[0].target, name="hostile") as front_end, SipCaller(*front_end.address) as caller:
        _throw_at(caller, random.Random(seed))
        call = caller.call("nap-0.2")
        assert call.await_final(10).code == 302
        assert "Traceback" not in front_end.output()
        with Client(shared[0].target) as client:
            wait_until(lambda: not list(client.list("hostile")), 2, "nothing held for it")


def _throw_at(caller: SipCaller, rng: random.Random) -> None:
    model = SipCall(caller, "quick", "INVITE", b"X-More: 1", None).request("INVITE")
    for number in range(1500):
        match number % 5:
            case 0:
                datagram = rng.randbytes(rng.choice([0, 1, 31, 32, 200, 1400]))
            case 1:  # bytes changed anywhere
                changed = bytearray(model)
                for _ in range(rng.randint(1, 20)):
                    changed[rng.randrange(len(changed))] = rng.randrange(256)
                datagram = bytes(changed)
            case 2:
                datagram = model[: rng.randrange(len(model))]
            case 3:  # lines lost, repeated, out of order
                lines = model.split(b"\r\n")
                datagram = b"\r\n".join(rng.choices(lines, k=len(lines)))
            case _:
                datagram = model.replace(
                    rng.choice([b":", b";", b"=", b"/", b" "]), rng.randbytes(2), rng.randint(1, 5)
                )
        caller.socket.send(datagram)
    for datagram in (
        b"INVITE " + b'"\\' * 32_000,
        b"INVITE sip:a SIP/2.0\r\n" + b"V: \r\n" * 12_000,
        model.replace(b"From: ", b"From: " + b'"\\"' * 20_000),
        model.replace(b"Via: ", b"Via: " + b"," * 60_000),
        model.replace(b"127.0.0.1:", b"127.0.0.1:99999", 1),
        model.replace(b";rport", b";received=192.0.2.1;rport=1"),
        b"SIP/2.0 200 OK\r\n\r\n",
        b"\r\n\r\n",
    ):
        caller.socket.send(datagram)


def test_another_front_end_has_a_name_of_its_own(shared: tuple[Sidecar, FrontEnd]) -> None:
    with (
        FrontEnd(shared[0].target, name="other") as front_end,
        SipCaller(*front_end.address) as caller,
        Client(shared[0].target) as client,
    ):
        call = caller.call("nap-0.5")
        wait_until(lambda: list(client.list("other")), 2, "the suspension in the list")
        (info,) = client.list("other")
        assert key_of(info.suspension.key).front_end_id == "other"
        assert call.await_final().code == 302


def test_the_example(shared: tuple[Sidecar, FrontEnd]) -> None:
    routes = Path(__file__).parents[2] / "examples" / "sip" / "routes.py"
    with (
        FrontEnd(shared[0].target, routes=routes, name="example") as front_end,
        SipCaller(*front_end.address) as caller,
    ):
        napping = caller.call("bob")
        assert caller.call("anybody", method="OPTIONS").await_final().code == 200
        assert caller.call("sleep").await_final().code == 404
        final = napping.await_final()
        assert (final.code, final.header("contact")) == (302, b"<sip:bob@192.0.2.4>")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no such file"),
        ("x = 1", "write 'app = App()'"),
        ("from sipnap.shim.sip import App\napp = App()", "@app.request_route"),
        ("from sipnap.shim.sip import App\napp = App()\n\n1 / 0", "routes.py:4: ZeroDivisionError"),
        ("def broken(:", "routes.py:1: SyntaxError"),
    ],
)
def test_routes_files_that_cannot_be_used(tmp_path: Path, content: str | None, complaint: str) -> None:
    routes = tmp_path / "routes.py"
    if content is not None:
        routes.write_text(content)
    with Process("front-end", sipnap("shim", "sip", "--routes", routes, "--bind", "127.0.0.1:0")) as process:
        assert process.wait(20) == 1
        assert complaint in process.output()
        assert len(process.output().splitlines()) == 1


def test_a_port_in_use(shared: tuple[Sidecar, FrontEnd]) -> None:
    host, port = shared[1].address
    with Process("front-end", sipnap("shim", "sip", "--routes", ROUTES, "--bind", f"{host}:{port}")) as process:
        assert process.wait(20) == 1
        assert f"--bind {host}:{port}" in process.output()
        assert "choose another port" in process.output()
