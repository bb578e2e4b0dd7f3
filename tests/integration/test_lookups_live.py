"""The shipped operations of a real `sipnap serve`: each nap gets its own result, servers that misbehave cost little."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sipnap.client import FrontEndSession, SuspensionKey, key_of
from sipnap.client.operations import Value, arguments_of, operation_message
from sipnap.v1 import suspension_pb2 as pb
from tests.support.dns_server import DnsServer
from tests.support.http_server import HttpServer
from tests.support.processes import Sidecar, free_port, sipnap

OK, FAILED, TIMED_OUT = pb.CONTINUE_STATUS_OK, pb.CONTINUE_STATUS_FAILED, pb.CONTINUE_STATUS_TIMED_OUT

BAD = {
    "stuck": "http_timeout",
    "drip": "http_timeout",
    "large": "http_too_large",
    "bomb": "http_too_large",
    "redirect": "http_redirect",
}
"""Templates of servers that misbehave, and what comes of them."""


@pytest.fixture(scope="module")
def good() -> Iterator[HttpServer]:
    with HttpServer(delay_seconds=0.2) as server:
        yield server


@pytest.fixture(scope="module")
def bad() -> Iterator[HttpServer]:
    """A process of its own, so that what it has to do does not slow down the good one."""
    with HttpServer() as server:
        yield server


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    with DnsServer(delay_seconds=0.02) as server:
        yield server


@pytest.fixture
def sidecar(good: HttpServer, bad: HttpServer, dns: DnsServer, tmp_path: Path) -> Iterator[Sidecar]:
    templates = tmp_path / "templates.toml"
    tables = [f'[route]\nurl = "{good.url}/number/{{n}}"\npick = {{ n = "number", uri = "data.routes[0].uri" }}\n']
    tables += [
        f'[{name}]\nurl = "{bad.url}/{path}"\ntotal_seconds = 1.0\nmax_redirects = 5\n'
        for name, path in {**{name: name for name in BAD}, "bomb": "bomb?bytes=30000000"}.items()
    ]
    templates.write_text("".join(tables) + f'[patient]\nurl = "{bad.url}/stuck"\n')
    flags: list[str | Path] = ["--http-allow", good.address, "--http-allow", bad.address, "--http-templates", templates]
    flags += ["--enum-domain", dns.domain, "--enum-server", dns.address, "--enum-seconds", "0.5"]
    flags += ["--group", "name=good,workers=64", "--group", "name=bad,workers=16"]
    with Sidecar(*flags) as process:
        yield process


@dataclass
class FrontEnd:
    """Suspends, answers for continues, and knows how long each took."""

    session: FrontEndSession
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    waiting: dict[int, asyncio.Future[pb.Continue]] = field(default_factory=dict)

    async def ask(
        self, name: str, arguments: dict[str, Value], *, group: str = "", seconds: float = 10.0
    ) -> pb.Continue:
        number = next(self.numbers)
        key = SuspensionKey("bench", 1, number, 1, 1)
        suspension = pb.Suspension(key=key.to_message(), resume_route="R")
        suspension.operations.append(operation_message(name, arguments, group=group))
        suspension.delay.FromNanoseconds(int(seconds * 1e9))
        ended: asyncio.Future[pb.Continue] = asyncio.get_running_loop().create_future()
        self.waiting[number] = ended
        self.session.suspend(suspension)
        async with asyncio.timeout(seconds + 10):
            return await ended

    async def listen(self) -> None:
        async for batch in self.session.batches():
            for message in batch:
                self.session.answer(key_of(message.key), pb.CONTINUE_OUTCOME_APPLIED)
                ended = self.waiting.pop(message.key.transaction_index)
                if not ended.done():
                    ended.set_result(message)


@asynccontextmanager
async def _front_end(sidecar: Sidecar) -> AsyncIterator[FrontEnd]:
    async with FrontEndSession([sidecar.target], front_end_id="bench", boot_epoch=1) as session:
        await session.wait_connected(10)
        front_end = FrontEnd(session)
        listener = asyncio.create_task(front_end.listen())
        try:
            yield front_end
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


async def test_every_nap_ends_with_its_own_result(sidecar: Sidecar) -> None:
    numbers = [str(number) for number in range(10_100, 10_200)]
    async with _front_end(sidecar) as front_end:
        http = [front_end.ask("http", {"template": "route", "n": number}, group="good") for number in numbers]
        enum = [front_end.ask("enum", {"number": f"+{number}"}, group="good") for number in numbers]
        answers = await asyncio.gather(*http, *enum)
    for number, of_http, of_enum in zip(numbers, answers[: len(numbers)], answers[len(numbers) :], strict=True):
        uri = f"sip:{number}@127.0.0.1".encode()
        assert (of_http.status, of_http.error) == (OK, "")
        assert arguments_of(of_http.values) == {"status": 200, "n": number.encode(), "uri": uri}
        found = arguments_of(of_enum.values)
        assert found == {"found": True, "uri": uri, "uris": [uri, f"sip:second-{number}@127.0.0.1".encode()]}


async def test_what_went_wrong_reaches_the_script_as_status_and_code(sidecar: Sidecar) -> None:
    wanted: list[tuple[str, dict[str, Value], float, tuple[int, str]]] = [
        *[("http", dict[str, Value](template=name), 10.0, (int(FAILED), code)) for name, code in BAD.items()],
        ("http", {"template": "patient"}, 0.5, (TIMED_OUT, "timeout")),
        ("http", {"template": "none"}, 5.0, (FAILED, "http_bad_template")),
        ("http", {"template": "route", "n": ".."}, 5.0, (FAILED, "http_bad_arguments")),
        ("http", {"url": "http://127.0.0.1:1/"}, 5.0, (FAILED, "http_not_allowed")),
        ("enum", {"number": "+43002"}, 5.0, (FAILED, "enum_timeout")),
        ("enum", {"number": "+43003"}, 5.0, (FAILED, "enum_server_failure")),
        ("enum", {"number": "4300"}, 5.0, (FAILED, "enum_bad_number")),
    ]
    async with _front_end(sidecar) as front_end:
        answers = await asyncio.gather(
            *(front_end.ask(name, arguments, seconds=seconds) for name, arguments, seconds, _ in wanted)
        )
        assert [(answer.status, answer.error_code) for answer in answers] == [expected for *_, expected in wanted]
        assert (await front_end.ask("enum", {"number": "+43001"})).status == OK


async def test_servers_that_misbehave_take_bounded_time_and_memory(sidecar: Sidecar) -> None:
    async with _front_end(sidecar) as front_end:
        # Whatever is made once is made before the measuring begins.
        await asyncio.gather(*(front_end.ask("http", {"template": name}) for name in BAD))
        before_bytes = _resident_bytes(sidecar.pid)
        started = time.monotonic()
        names = list(BAD) * 16
        answers = await asyncio.gather(
            *(front_end.ask("http", {"template": name}, group="bad", seconds=30) for name in names)
        )
        took_seconds = time.monotonic() - started
        grown_bytes = _resident_bytes(sidecar.pid, peak=True) - before_bytes
    assert [(answer.status, answer.error_code) for answer in answers] == [(FAILED, BAD[name]) for name in names]
    print(f"80 lookups of misbehaving servers: {took_seconds:.1f} s with 16 workers, {grown_bytes / 1e6:.1f} MB more")
    # 32 of them wait for one second, 16 at a time; had anything been read to its end it were 640 MB.
    assert took_seconds < 15
    assert grown_bytes < 48e6


def _resident_bytes(pid: int, *, peak: bool = False) -> int:
    wanted = "VmHWM:" if peak else "VmRSS:"
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(wanted))
    return int(line.split()[1]) * 1024


@pytest.mark.timeout(120)
async def test_servers_that_misbehave_in_one_group_leave_the_others_alone(sidecar: Sidecar) -> None:
    """Interleaved, alone and beside 16 lookups of misbehaving servers; the medians of the p99 are compared."""
    quiet, loaded = [], []
    async with _front_end(sidecar) as front_end:
        await _p99_ms(front_end)
        for _ in range(3):
            quiet.append(await _p99_ms(front_end))
            keepers = [
                asyncio.create_task(_keep_asking(front_end, name))
                for name in itertools.islice(itertools.cycle(BAD), 16)
            ]
            try:
                loaded.append(await _p99_ms(front_end))
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.gather(*keepers, return_exceptions=True)
    print(f"p99 of a 200 ms lookup, ms: alone {quiet}, beside misbehaving servers {loaded}")
    assert statistics.median(loaded) <= 1.2 * statistics.median(quiet)


async def _p99_ms(front_end: FrontEnd, calls: int = 100, rate: int = 50) -> float:
    async def one(number: int) -> float:
        started = time.monotonic()
        answer = await front_end.ask("http", {"template": "route", "n": str(number)}, group="good")
        assert arguments_of(answer.values)["n"] == str(number).encode()
        return (time.monotonic() - started) * 1000

    tasks = []
    for number in range(calls):
        tasks.append(asyncio.create_task(one(number)))
        await asyncio.sleep(1 / rate)
    return round(statistics.quantiles(await asyncio.gather(*tasks), n=100)[98], 1)


async def _keep_asking(front_end: FrontEnd, name: str) -> None:
    while True:
        answer = await front_end.ask("http", {"template": name}, group="bad")
        assert answer.error_code == BAD[name]
        await asyncio.sleep(0.2)


async def test_without_a_list_of_hosts_there_is_no_http() -> None:
    with Sidecar() as bare:
        async with _front_end(bare) as front_end:
            refused = await front_end.ask("http", {"url": "http://127.0.0.1/"})
        assert refused.status == FAILED
        assert "http" in refused.error
        assert "the operation http is not offered: --http-allow names no host" in bare.output()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--http-allow", "http://host/"], "is not HOST or HOST:PORT"),
        (["--http-templates", "TEMPLATES"], "--http-templates needs --http-allow"),
        (["--http-allow", "h", "--http-templates", "TEMPLATES"], "'a': http://other:80 is not allowed: --http-allow"),
        (["--http-allow", "h", "--http-templates", "none.toml"], "none.toml: cannot be read"),
        (["--http-allow", "h", "--http-ca", "none.pem"], "--http-ca none.pem: no certificates can be read"),
        (["--enum-server", "localhost:53"], "is not ADDRESS or ADDRESS:PORT"),
        (["--enum-domain", "a..b"], "--enum-domain"),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_ends_the_start_with_one_line(
    flags: list[str], says: str, tmp_path: Path
) -> None:
    templates = tmp_path / "templates.toml"
    templates.write_text('[a]\nurl = "http://other/"\n')
    words = [str(templates) if flag == "TEMPLATES" else flag for flag in flags]
    listen = ("--listen", f"127.0.0.1:{free_port()}", "--journal", "memory", "--log-level", "error")
    done = subprocess.run(
        [str(word) for word in sipnap("serve", *listen, *words)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
