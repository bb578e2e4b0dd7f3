"""``sipnap shim kamailio``: its settings, and the files that it writes."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest

from sipnap.client.errors import NapError
from sipnap.shim.kamailio import command
from sipnap.shim.kamailio.inbox import Address


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.configure(parser)
    return parser.parse_args(words)


def test_defaults_fit_those_of_sipnap_cfg(tmp_path: Path) -> None:
    arguments = parse()
    command.write_config(tmp_path, force=False)
    config = (tmp_path / "sipnap.cfg").read_text()
    assert arguments.listen == Address(
        "127.0.0.1", int(re.findall(r"#!define SIPNAP_SHIM_PORT (\d+)$", config, re.M)[0])
    )
    assert arguments.proxy == Address("127.0.0.1", int(re.findall(r"#!define SIPNAP_PORT (\d+)$", config, re.M)[0]))


@pytest.mark.parametrize("address", ["0.0.0.0:5999", "192.0.2.1:5999", "[::1]:5999", "localhost:5999"])
def test_the_shim_stays_on_loopback(address: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=r"127\.0\.0\.1"):
        parse("--listen", address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:x", ""])
def test_a_port_has_to_be_one(address: str) -> None:
    with pytest.raises(argparse.ArgumentError):
        parse("--proxy", address)


def test_a_front_end_id_has_to_be_one() -> None:
    with pytest.raises(argparse.ArgumentError, match="front-end-id"):
        parse("--front-end-id", "no spaces")


def test_files_of_the_operator_s_are_not_replaced(tmp_path: Path) -> None:
    assert command.write_config(tmp_path, force=False) == 0
    assert command.write_config(tmp_path, force=False) == 0, "what is the same already is no reason to fail"
    config = tmp_path / "sipnap.cfg"
    config.write_text("mine")
    with pytest.raises(NapError, match=r"sipnap\.cfg exists and differs; --force"):
        command.write_config(tmp_path, force=False)
    assert config.read_text() == "mine"
    assert command.write_config(tmp_path, force=True) == 0
    assert "route[SIPNAP_IN]" in config.read_text()
    assert "class Nap" in (tmp_path / "sipnap_kemi.py").read_text()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NapError, match="no such directory"):
        command.write_config(tmp_path / "missing", force=False)


def test_kemi_needs_the_standard_library_only() -> None:
    source = (Path(command.__file__).parent / "sipnap_kemi.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"KSR"}
