"""`sipnap serve` as a process: where it listens, what it refuses, what it tells Prometheus."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import urllib.request
from pathlib import Path

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from sipnap.client import TlsFiles, aio, errors, sync
from tests.support.processes import Process, Sidecar, free_port, sipnap


def refused(*flags: str | Path) -> str:
    """What `sipnap serve` says when it will not start."""
    with Process("serve", sipnap("serve", *flags)) as process:
        assert process.wait(20) in (1, 2)
        return process.output()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory with a CA, a server's and a client's certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("127.0.0.1", "client.example"):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return tmp_path


def test_an_address_that_others_reach_needs_tls_or_a_word() -> None:
    said = refused("--listen", "0.0.0.0:0")
    assert "--tls-cert" in said
    assert "--insecure" in said
    with Process("serve", sipnap("serve", "--listen", "0.0.0.0:0", "--insecure"), ready="ready on 0.0.0.0:"):
        pass


def test_a_second_sidecar_on_the_port_does_not_start(sidecar: Sidecar) -> None:
    assert "is another sidecar running there?" in refused("--listen", sidecar.target)
    with sync.Client(sidecar.target) as client:
        assert not client.status().draining


def test_a_unix_socket_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.sock"
    with Process("serve", sipnap("serve", "--listen", f"unix:{path}"), ready=r"ready on unix:") as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with sync.Client(f"unix:{path}") as client:
            assert client.sleep(0.01) >= 0.01
        assert "another process listens there already" in refused("--listen", f"unix:{path}")
        process.signal(signal.SIGKILL)
        process.wait(5)
    assert path.exists(), "a leftover"
    with Process("serve", sipnap("serve", "--listen", f"unix:{path}"), ready=r"ready on unix:") as process:
        assert process.stop() == 0
    assert not path.exists()


def test_a_file_in_the_way_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "is no socket" in refused("--listen", f"unix:{path}")
    assert path.read_text() == "data"
    assert "does not exist" in refused("--listen", f"unix:{tmp_path}/nowhere/sidecar.sock")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--listen", "localhost"], "is not HOST:PORT or unix:PATH"),
        (["--listen", "127.0.0.1:99999"], "is not HOST:PORT or unix:PATH"),
        (["--max-seconds", "-1"], "--max-seconds"),
        (["--workers", "many"], "--workers"),
        (["--journal", "paper"], "--journal"),
        (["--tls-cert", "server.pem"], "both --tls-cert and --tls-key"),
        (["--operations", "no_such_module_here"], "no_such_module_here"),
        (["--tls-cert", "/nowhere.pem", "--tls-key", "/nowhere.key"], "/nowhere.key"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_bad_settings_are_named(flags: list[str], complaint: str) -> None:
    said = refused(*(["--listen", "127.0.0.1:0"] if "--listen" not in flags else []), *flags)
    assert complaint in said
    assert "Traceback" not in said


def test_tls(certificates: Path) -> None:
    flags: list[str | Path] = [
        "--tls-cert",
        certificates / "127.0.0.1.pem",
        "--tls-key",
        certificates / "127.0.0.1.key",
    ]
    with Sidecar(*flags) as sidecar:
        ca = TlsFiles(ca=certificates / "ca.pem").credentials()
        with sync.Client(sidecar.target, credentials=ca) as client:
            assert client.status().instance_id
        with sync.Client(sidecar.target) as client, pytest.raises(errors.Unavailable):
            client.status()


def test_mutual_tls(certificates: Path) -> None:
    flags: list[str | Path] = [
        "--tls-cert",
        certificates / "127.0.0.1.pem",
        "--tls-key",
        certificates / "127.0.0.1.key",
    ]
    with Sidecar(*flags, "--tls-ca", certificates / "ca.pem") as sidecar:
        ca = certificates / "ca.pem"
        known = TlsFiles(ca, certificates / "client.example.pem", certificates / "client.example.key")
        with sync.Client(sidecar.target, credentials=known.credentials()) as client:
            assert client.status().instance_id
        stranger = TlsFiles(ca=ca).credentials()
        with sync.Client(sidecar.target, credentials=stranger) as client, pytest.raises(errors.Unavailable):
            client.status()
    with pytest.raises(ValueError, match="go together"):
        TlsFiles(certificate=ca).credentials()


async def test_metrics_say_what_the_sidecar_does() -> None:
    port = free_port()
    with Sidecar("--metrics", f"127.0.0.1:{port}", "--workers", "3") as sidecar:
        async with aio.Client(sidecar.target) as client:
            sleeper = asyncio.create_task(client.sleep(30))
            await client.sleep(0.02)
            with pytest.raises(errors.DelayOutOfRange):
                await client.sleep(1000)

            def scrape() -> dict[str, float]:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                    families = text_string_to_metric_families(page.read().decode())
                return {
                    sample.name + "".join(sorted(sample.labels.values())): sample.value
                    for family in families
                    for sample in family.samples
                }

            values = await asyncio.to_thread(scrape)
            sleeper.cancel()
        assert values["sipnap_sleeping_callers"] == 1
        assert values["sipnap_slept_total"] == 1
        assert values["sipnap_refused_totaldelay_out_of_range"] == 1
        assert values["sipnap_group_workersdefault"] == 3
        assert values["sipnap_lateness_seconds_bucket+Inf"] == values["sipnap_lateness_seconds_count"] == 1
        assert values["sipnap_sessions"] == 0
        said = refused("--listen", "127.0.0.1:0", "--metrics", f"127.0.0.1:{port}")
        assert "--metrics" in said
        assert "cannot be bound" in said


OPERATIONS = """
import asyncio

async def greet(arguments, state):
    await asyncio.sleep(arguments.get("seconds", 0))
    return {"text": b"hello " + arguments["name"], "cseq": state.cseq, "good": True, "several": ["a", 1]}

async def fail(arguments, state):
    raise LookupError("no such number")

OPERATIONS = {"greet": greet, "fail": fail}
"""


async def test_operations_answer_fail_and_time_out(tmp_path: Path) -> None:
    from sipnap.client import FrontEndSession, SuspensionKey
    from sipnap.v1 import suspension_pb2 as pb

    (tmp_path / "my_operations.py").write_text(OPERATIONS)
    os.environ["PYTHONPATH"], before = str(tmp_path), os.environ.get("PYTHONPATH")
    try:
        started = Sidecar("--operations", "my_operations", "--workers", "1")
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    with started as sidecar:
        async with (
            aio.Client(sidecar.target) as client,
            FrontEndSession([sidecar.target], front_end_id="ops", boot_epoch=1) as session,
        ):
            await session.wait_connected(10)

            async def ask(number: int, name: str, seconds: int) -> pb.Continue:
                operation = pb.Operation(name=name)
                operation.arguments.add(name="name", value=pb.Value(text=b"bob"))
                operation.arguments.add(name="seconds", value=pb.Value(integer=seconds))
                key = SuspensionKey("ops", 1, number, 1, 1)
                state = pb.TransactionState(cseq=42)
                await client.suspend_route(key, "R", 1.0, state=state, operations=[operation])
                async with asyncio.timeout(5):
                    (answer,) = await anext(aiter(session.batches()))
                session.answer(key, pb.CONTINUE_OUTCOME_APPLIED)
                return answer

            ok = await ask(1, "greet", 0)
            assert ok.status == pb.CONTINUE_STATUS_OK
            values = {value.name: value.value for value in ok.values}
            assert (values["text"].text, values["cseq"].integer, values["good"].boolean) == (b"hello bob", 42, True)
            assert [value.text or value.integer for value in values["several"].list.values] == [b"a", 1]
            failed = await ask(2, "fail", 0)
            assert (failed.status, failed.error) == (pb.CONTINUE_STATUS_FAILED, "fail: LookupError: no such number")
            late = await ask(3, "greet", 30)
            assert late.status == pb.CONTINUE_STATUS_TIMED_OUT
            assert "greet" in late.error
            assert (await ask(4, "greet", 0)).status == pb.CONTINUE_STATUS_OK, "the one worker is free again"
