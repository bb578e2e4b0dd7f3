"""Apps, calls and log lines of the Python front end, as far as they need neither sockets nor sidecar."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sipnap.shim.sip import App, Call
from sipnap.shim.sip.call import RouteEnded, is_nap_length
from sipnap.shim.sip.repeated import QUIET_SECONDS, RepeatedLog
from sipnap.shim.sip.trace import Trace


async def nothing(call: Call) -> None:
    pass


def test_routes_are_found_by_name() -> None:
    app = App()
    assert app.request_route(nothing) is nothing
    assert app.route("RESUME")(nothing) is nothing
    assert app.find_request_route() is nothing
    assert app.find_route("RESUME") is nothing
    assert app.find_route("resume") is None


def test_a_second_request_route_and_taken_names_are_refused() -> None:
    app = App()
    app.request_route(nothing)
    app.route("A")(nothing)
    with pytest.raises(ValueError, match="request_route already"):
        app.request_route(nothing)
    with pytest.raises(ValueError, match="'A' already"):
        app.route("A")


@pytest.mark.parametrize("name", ["", "a b", "a\n", "ä", "x" * 65, "a/b"])
def test_route_names_are_plain(name: str) -> None:
    with pytest.raises(ValueError, match="not a route name"):
        App().route(name)


def test_routes_are_coroutine_functions() -> None:
    def plain(call: Call) -> None:
        pass

    wrong: Any = plain
    with pytest.raises(TypeError, match="async def"):
        App().request_route(wrong)
    with pytest.raises(TypeError, match="async def"):
        App().route("A")(wrong)


def test_the_end_of_a_route_is_no_exception() -> None:
    assert not issubclass(RouteEnded, Exception)


@pytest.mark.parametrize(
    ("seconds", "can_be"), [(1, True), (0.001, True), (0, False), (-1, False), (float("nan"), False), (1e400, False)]
)
def test_is_nap_length(seconds: float, can_be: bool) -> None:
    assert is_nap_length(seconds) is can_be


class _Request:
    method = "INVITE"
    call_id = b"x"


class _Transaction:
    request = _Request()


class _FrontEnd:
    """Takes the replies that pass `Call`'s checks."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, str, list[tuple[str, str]]]] = []

    def reply(self, call: Call, code: int, reason: str, headers: list[tuple[str, str]]) -> bool:
        self.replies.append((code, reason, headers))
        return True


@pytest.fixture
def front_end() -> _FrontEnd:
    return _FrontEnd()


@pytest.fixture
def call(front_end: _FrontEnd) -> Call:
    some_front_end: Any = front_end
    some_transaction: Any = _Transaction()
    return Call(some_front_end, some_transaction)


def test_redirects(call: Call, front_end: _FrontEnd) -> None:
    assert call.redirect("sip:bob@192.0.2.4;transport=udp")
    assert front_end.replies == [(302, "Moved Temporarily", [("Contact", "<sip:bob@192.0.2.4;transport=udp>")])]


@pytest.mark.parametrize("code", [0, 99, 700, -200])
def test_codes_are_sip_codes(call: Call, front_end: _FrontEnd, code: int) -> None:
    with pytest.raises(ValueError, match="status code"):
        call.reply(code, "x")
    assert not front_end.replies


@pytest.mark.parametrize("bad", ["a\rb", "a\nb", "\r\nX-Evil: 1", "a\0b"])
def test_no_value_breaks_out_of_its_line(call: Call, front_end: _FrontEnd, bad: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        call.reply(200, bad)
    with pytest.raises(ValueError, match="line break"):
        call.reply(200, "OK", [("X-A", bad)])
    with pytest.raises(ValueError, match="line break"):
        call.reply(200, "OK", [(bad, "x")])
    with pytest.raises(ValueError, match="Contact"):
        call.redirect("sip:" + bad)
    assert not front_end.replies


@pytest.mark.parametrize("uri", ["bob", "", "sip:a> <sip:b", 'sip:"a"', "sip:a b"])
def test_redirects_go_to_uris(call: Call, uri: str) -> None:
    with pytest.raises(ValueError, match="URI"):
        call.redirect(uri)


def test_redirects_are_3xx(call: Call) -> None:
    with pytest.raises(ValueError, match="300 to 399"):
        call.redirect("sip:bob@192.0.2.4", 200)


async def test_async_route_wants_a_route_name(call: Call) -> None:
    with pytest.raises(ValueError, match="not a route name"):
        await call.async_route("no such name", 1)


def test_calls_hold_no_state_but_avps(call: Call) -> None:
    anything: Any = call
    with pytest.raises(AttributeError):
        anything.note = "lost on the way"
    call.avps["note"] = "kept"


class TestRepeatedLog:
    @pytest.fixture(autouse=True)
    def _set_up(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_seconds = 0.0
        self.caplog = caplog
        self.log = RepeatedLog(logging.getLogger("test"), lambda: self.now_seconds)

    def write(self, kind: str, error: BaseException | None = None) -> None:
        self.log.write(kind, logging.WARNING, "it happened kind=%s", kind, error=error)

    def test_the_first_is_written_and_the_next_counted(self) -> None:
        for _ in range(5):
            self.write("a")
        self.now_seconds = QUIET_SECONDS
        self.write("a")
        assert self.caplog.messages == ["it happened kind=a", "it happened kind=a repeated=4"]

    def test_kinds_do_not_hide_each_other(self) -> None:
        self.write("a")
        self.write("b")
        assert len(self.caplog.messages) == 2

    def test_a_traceback_comes_once(self) -> None:
        self.write("a", ValueError("x"))
        self.now_seconds = QUIET_SECONDS
        self.write("a", ValueError("x"))
        assert [record.exc_info is None for record in self.caplog.records] == [False, True]


def test_trace_lines_are_json_whatever_sip_sent(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "calls.jsonl"
    trace = Trace(path)
    trace.write("suspended", call, nap=1)
    trace.close()
    event = json.loads(path.read_text(encoding="ascii"))
    assert (event["step"], event["call_id"], event["method"], event["nap"]) == ("suspended", "x", "INVITE", 1)
    assert event["at"] > 0


def test_commands_can_be_described_without_the_sip_extra() -> None:
    program = (
        "import argparse, sys; sys.modules['sippy'] = None; from sipnap.shim.sip import command, demo, App, Call;"
        "command.configure(argparse.ArgumentParser()); demo.configure(argparse.ArgumentParser())"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_every_flag_has_its_help() -> None:
    from sipnap.shim.sip import command, demo

    for module in (command, demo):
        parser = argparse.ArgumentParser()
        module.configure(parser)
        assert all(action.help for action in parser._actions)
        assert module.SUMMARY
        assert "exit codes:" in module.EPILOG


def test_the_commands_defaults_are_the_modules() -> None:
    from sipnap.shim.sip import command
    from sipnap.shim.sip.front_end import DEFAULT_MARGIN_SECONDS, DEFAULT_MAX_SECONDS
    from sipnap.shim.sip.transactions import DEFAULT_MAX_TRANSACTIONS

    parser = argparse.ArgumentParser()
    command.configure(parser)
    arguments = parser.parse_args(["--routes", "x.py"])
    assert arguments.max_seconds == DEFAULT_MAX_SECONDS
    assert arguments.margin_seconds == DEFAULT_MARGIN_SECONDS
    assert arguments.max_transactions == DEFAULT_MAX_TRANSACTIONS
