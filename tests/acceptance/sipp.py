"""Real SIPp: callers and called parties."""

from __future__ import annotations

import csv
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.support.processes import Process, free_port

SCENARIOS = Path(__file__).parent / "scenarios"
SIPP = shutil.which("sipp")


@dataclass(frozen=True, slots=True)
class Calls:
    """What became of a run of calls."""

    successful: int
    """Calls that went as the scenario says."""
    failed: int
    """Calls that did not."""
    retransmissions: int
    """Messages that SIPp had to send again."""
    late_ms: Sequence[float]
    """Per call answered from a resume route: time from INVITE to answer, minus the nap. From SIPp's own message log."""

    def __str__(self) -> str:
        early = sum(1 for late in self.late_ms if late < 0)
        ordered = sorted(self.late_ms) or [float("nan")]
        mean = sum(ordered) / len(ordered)
        return (
            f"{self.successful} successful, {self.failed} failed, {self.retransmissions} retransmissions, "
            f"{early} early; late by mean {mean:.1f} ms, median {ordered[len(ordered) // 2]:.1f} ms, "
            f"p99 {ordered[len(ordered) * 99 // 100]:.1f} ms, at most {ordered[-1]:.1f} ms"
        )


class Callers(Process):
    """SIPp placing calls at a steady rate. Give the first field of each, or let it be a nap of random length."""

    def __init__(
        self,
        directory: Path,
        proxy: str,
        *,
        scenario: str,
        rate: int,
        calls: int,
        user: str = "nap",
        nap_ms: tuple[int, int] = (100, 3000),
        fields: Sequence[str] = (),
        keys: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        assert SIPP, "sipp is not installed: apt-get install sip-tester"
        self._directory = directory
        directory.mkdir(exist_ok=True)
        if not fields:
            dice = random.Random(seed)
            print(f"naps drawn with seed {seed}")
            fields = [str(dice.randint(*nap_ms)) for _ in range(calls)]
        field_file = directory / "fields.csv"
        field_file.write_text("SEQUENTIAL\n" + "".join(f"{field};\n" for field in fields))
        super().__init__(
            "sipp",
            [
                SIPP, proxy, "-sf", SCENARIOS / scenario, "-inf", field_file, "-s", user,
                "-r", str(rate), "-m", str(calls),
                "-l", "19000", "-i", "127.0.0.1", "-p", str(free_port()), "-nostdin", "-buff_size", "4000000",
                "-trace_stat", "-stf", directory / "stat.csv", "-fd", "600",
                "-trace_err", "-error_file", directory / "errors.log",
                "-trace_msg", "-message_file", directory / "messages.log", "-recv_timeout", "30000", *keys,
            ],
            cwd=directory,
        )  # fmt: skip

    def result(self, seconds: float) -> Calls:
        """Wait for the last call's end, and say what became of all."""
        self.wait(seconds)
        with (self._directory / "stat.csv").open() as stat:
            row = list(csv.DictReader(stat, delimiter=";"))[-1]
        return Calls(
            successful=int(row["SuccessfulCall(C)"]),
            failed=int(row["FailedCall(C)"]),
            retransmissions=int(row["Retransmissions(C)"]),
            late_ms=list(_late_ms(self._directory / "messages.log")),
        )

    def final_replies(self) -> dict[str, list[str]]:
        """All final replies to the INVITE of each call, by its first field, which X-Number has to say."""
        numbers: dict[str, str] = {}
        replies: dict[str, list[str]] = {}
        for _, text in logged_messages(self._directory / "messages.log"):
            if text.startswith("INVITE ") and (number := header_of(text, "X-Number")):
                numbers[call_id_of(text)] = number
                replies.setdefault(number, [])
            elif re.match(r"SIP/2.0 [2-6]", text) and call_id_of(text) in numbers:
                replies[numbers[call_id_of(text)]].append(text)
        return replies

    def errors(self) -> str:
        """What SIPp found wrong, the beginning of it."""
        errors = self._directory / "errors.log"
        return errors.read_text(errors="replace")[:3000] if errors.exists() else ""


class CalledParty(Process):
    """SIPp answering calls on a free port."""

    def __init__(self, directory: Path, *, scenario: str) -> None:
        assert SIPP, "sipp is not installed: apt-get install sip-tester"
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self._messages = directory / "messages.log"
        super().__init__(
            "sipp-uas",
            [
                SIPP, "-sf", SCENARIOS / scenario, "-i", "127.0.0.1", "-p", str(self.port), "-nostdin",
                "-trace_msg", "-message_file", self._messages,
            ],
            cwd=directory,
        )  # fmt: skip

    def messages(self) -> str:
        """All SIP that it received and sent."""
        return self._messages.read_text(errors="replace") if self._messages.exists() else ""


_MESSAGE = re.compile(
    r"^-{20,} (?P<time>[-0-9]+ [:.0-9]+)\n\S+ message (?:sent|received).*?\n\n(?P<text>.*?)(?=^-{20,} |\Z)",
    re.MULTILINE | re.DOTALL,
)


def logged_messages(log: Path) -> Iterator[tuple[float, str]]:
    """Each SIP message in a message log of SIPp's: when it was logged, in ms since 1970, and its text."""
    for message in _MESSAGE.finditer(log.read_text(errors="replace")):
        logged = datetime.strptime(message["time"], "%Y-%m-%d %H:%M:%S.%f").astimezone()
        yield logged.timestamp() * 1000, message["text"]


def asked_for(invite: str) -> tuple[float, float] | None:
    """When an INVITE was made, in ms since 1970, and how long it is to nap, in ms; None if it does not say.

    The time is the one in it, from before it was sent, not its log line's: SIPp may lose the CPU between a call and
    its log line, and that must not look like an early answer.
    """
    asked = re.search(r"^X-Nap-Ms: *([0-9]+)\s+X-Sent: .*?([0-9]+\.[0-9]+)\s*$", invite, re.MULTILINE)
    return None if asked is None else (float(asked[2]) * 1000, float(asked[1]))


def call_id_of(message: str) -> str:
    """Its Call-ID; empty if it has none."""
    return header_of(message, "Call-ID")


def header_of(message: str, name: str) -> str:
    """The value of a header field; empty if there is none."""
    found = re.search(rf"^{name}: *(.*?)\s*$", message, re.MULTILINE)
    return found[1] if found else ""


def _late_ms(log: Path) -> Iterator[float]:
    """Per call that was answered from a resume route, the time from its INVITE to this answer minus its nap."""
    began: dict[str, tuple[float, float]] = {}
    for logged_ms, text in logged_messages(log):
        call_id = call_id_of(text)
        if text.startswith("INVITE "):
            asked = asked_for(text)
            if asked is not None and call_id not in began:
                began[call_id] = asked
        elif re.match(r"SIP/2.0 [2-6]", text) and "X-Status:" in text and call_id in began:
            sent_ms, nap_ms = began.pop(call_id)
            yield logged_ms - sent_ms - nap_ms
