"""`sipnap status`, `list` and `cancel` against a running sidecar."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest
import trustme

from sipnap.client import FrontEndSession, SuspensionKey, aio
from sipnap.v1 import suspension_pb2 as pb
from tests.support.processes import Sidecar, free_port, sipnap


def _sipnap(*words: str) -> tuple[int, str]:
    done = subprocess.run(sipnap(*words), capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.fixture
def held(sidecar: Sidecar) -> list[SuspensionKey]:
    """Two suspensions of a front end that has had a session, one with a Call-ID that would clear a terminal."""
    keys = [SuspensionKey("test", 5, 1, label, 1) for label in (1, 2)]
    asyncio.run(_suspend(sidecar.target, keys))
    return keys


async def _suspend(target: str, keys: list[SuspensionKey]) -> None:
    async with (
        aio.Client(target) as client,
        FrontEndSession([target], front_end_id="test", boot_epoch=5) as session,
    ):
        await session.wait_connected(10)
        for key in keys:
            state = pb.TransactionState(method=b"INVITE", call_id=b"\x1b[2J\xff%d" % key.transaction_label)
            await client.suspend_route(key, "RESUME", 60, state=state)


def test_list_and_cancel(sidecar: Sidecar, held: list[SuspensionKey]) -> None:
    first, second = held
    code, said = _sipnap("list", "--sidecar", sidecar.target, "--json")
    entries = [json.loads(line) for line in said.splitlines()]
    assert code == 0
    assert [entry["key"] for entry in entries] == [str(first), str(second)]
    assert entries[0]["suspension"]["state"]["call_id"].encode("utf-8", "surrogateescape") == b"\x1b[2J\xff1"
    assert entries[0]["phase"] == "pending"

    code, said = _sipnap("list", "--sidecar", sidecar.target, "--limit", "1")
    assert code == 0
    assert len(said.splitlines()) == 2
    assert said.splitlines()[1].split()[0] == str(first)
    assert r"\x1b[2J\xff1" in said

    assert _sipnap("list", "--sidecar", sidecar.target, "--front-end", "other") == (0, "nothing is suspended\n")

    assert _sipnap("cancel", "--sidecar", sidecar.target, str(first)) == (0, f"{first}: cancelled\n")
    gone = f"{first}: gone; it ended before, or never was\n"
    assert _sipnap("cancel", "--sidecar", sidecar.target, str(first)) == (0, gone)
    code, said = _sipnap("list", "--sidecar", sidecar.target, "--json")
    assert [json.loads(line)["key"] for line in said.splitlines()] == [str(second)]


def test_status(sidecar: Sidecar, held: list[SuspensionKey]) -> None:
    code, said = _sipnap("status", "--sidecar", sidecar.target, "--json")
    members = json.loads(said)
    assert code == 0
    assert members["pending"] == members["counters"]["accepted"] == len(held)
    assert [front_end["front_end_id"] for front_end in members["front_ends"]] == ["test"]

    code, said = _sipnap("status", "--sidecar", sidecar.target)
    assert code == 0
    assert f"now         {len(held)} pending" in said


def test_no_sidecar_is_one_line_that_names_the_remedy() -> None:
    target = f"127.0.0.1:{free_port()}"
    for words in (["status"], ["list"], ["cancel", "kamailio/1/2/3/1"], ["run-task", "R", "--front-end", "kamailio"]):
        done = subprocess.run(
            sipnap(*words, "--sidecar", target), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 1
        assert done.stdout == ""
        assert re.fullmatch(rf"sipnap {words[0]}: no sidecar answered at {target}: .*'sipnap serve'.*\n", done.stderr)


def test_status_over_tls(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "server.pem", append=True)
    with Sidecar("--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key") as sidecar:
        (tmp_path / "sipnap.toml").write_text(
            f"sidecar = '{sidecar.target}'\n[status]\ntls_ca = '{tmp_path}/ca.pem'\njson = true\n"
        )
        code, said = _sipnap("status", "--config", str(tmp_path / "sipnap.toml"))
        assert (code, json.loads(said)["pending"]) == (0, 0)
        assert _sipnap("status", "--sidecar", sidecar.target) == (1, "")
        assert _sipnap("status", "--sidecar", sidecar.target, "--tls-ca", str(tmp_path / "stranger.pem")) == (1, "")
