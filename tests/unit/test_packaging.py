"""What the repository promises about itself: export lists, extras, examples, make targets."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sipnap.client import cli
from sipnap.client.settings import COMMON_KEYS, CONFIG, names_of, read_file, resolve

ROOT = Path(__file__).parents[2]
PORTIONS = ("client", "sidecar", "shim")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _modules_with_exports() -> list[str]:
    paths = [path for portion in PORTIONS for path in (ROOT / portion).glob("sipnap/**/*.py")]
    exporting = [path for path in paths if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE)]
    names = []
    for path in exporting:
        parts = path.relative_to(ROOT).with_suffix("").parts[1:]
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


@pytest.mark.parametrize("name", _modules_with_exports())
def test_export_lists_are_sorted_and_name_what_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for exported in module.__all__:
        assert hasattr(module, exported), f"{name}.{exported} is exported and not there"
        assert not exported.startswith("_")


def test_the_client_has_an_export_list() -> None:
    assert "sipnap.client" in _modules_with_exports()


def test_sipnap_itself_is_no_module() -> None:
    for portion in PORTIONS:
        assert not (ROOT / portion / "sipnap" / "__init__.py").exists(), "it would hide the other portions"
        assert list((ROOT / portion).glob("sipnap/*/py.typed"))


def test_a_missing_module_is_blamed_on_the_extra_that_brings_it() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    distributions = metadata.packages_distributions()
    for module, extra in cli.EXTRA_OF_MODULE.items():
        (distribution,) = set(distributions[module])
        brought = [re.split(r"[<>=!~\[]", requirement)[0] for requirement in extras[extra]]
        assert distribution.lower().replace("_", "-") in brought


def test_the_stubs_run_on_the_oldest_versions_allowed() -> None:
    oldest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(PROJECT["project"]["dependencies"]), re.MULTILINE))
    stubs = ROOT / "client" / "sipnap" / "v1"
    grpc_version = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (stubs / "nap_service_pb2_grpc.py").read_text())
    protobuf_version = re.search(r"Protobuf Python Version: ([\d.]+)", (stubs / "nap_service_pb2.py").read_text())
    assert grpc_version
    assert protobuf_version
    assert (oldest["grpcio"], oldest["protobuf"]) == (grpc_version[1], protobuf_version[1])


NOT_IN_THE_FILE = COMMON_KEYS | {CONFIG, "write_config", "force"}
"""Settings that need not stand in every table: common ones, and flags that make a command do something else."""


@pytest.mark.parametrize("section", ["serve", "shim.kamailio", "shim.sip", "status", "worker"])
def test_the_example_file_shows_every_setting_with_its_default(section: str, tmp_path: Path) -> None:
    # In the file "#key = value" is a setting that is switched off, "# text" is a remark.
    switched_on = re.sub(r"^#(?=\w+ = )", "", (ROOT / "deploy" / "sipnap.toml").read_text(), flags=re.MULTILINE)
    path = tmp_path / "sipnap.toml"
    path.write_text(switched_on)
    file = read_file(path, list(cli.entry_points()))
    parser = cli.parser_of(section, cli.load(cli.entry_points()[section]))

    shown = vars(resolve(parser, [], environment={}, section=section, file=file))
    for action in parser._actions:
        action.required = False  # it has no default to compare with
    defaults = vars(resolve(parser, [], environment={}))
    for name in names_of(parser):
        assert name in file.table(section) or name in NOT_IN_THE_FILE, f"[{section}] {name} is not in the example"
    # Where there is no default, the example has some value.
    differing = {name for name, value in defaults.items() if value not in (None, []) and shown[name] != value}
    assert differing == set()


def test_the_example_file_changes_nothing_as_it_is() -> None:
    content = tomllib.loads((ROOT / "deploy" / "sipnap.toml").read_text())
    assert content == {"serve": {}, "shim": {"kamailio": {}, "sip": {}}, "status": {}, "worker": {}}


def test_the_units_and_the_image_run_commands_that_exist() -> None:
    commands = {tuple(name.split(".")) for name in cli.entry_points()}
    for unit in (ROOT / "deploy" / "systemd").glob("*.service"):
        (start,) = re.findall(r"^ExecStart=/opt/sipnap/bin/sipnap (.*) --config \S+$", unit.read_text(), re.MULTILINE)
        assert tuple(start.split()) in commands
    dockerfile = (ROOT / "Dockerfile").read_text()
    default = re.findall(r'^CMD \["(\w+)"\]$', dockerfile, re.MULTILINE)
    health_check = re.findall(r'^HEALTHCHECK .* CMD \["sipnap", "(\w+)"\]$', dockerfile, re.MULTILINE)
    assert (default, health_check) == (["serve"], ["status"])


def test_the_drain_ends_before_systemd_loses_patience() -> None:
    unit = (ROOT / "deploy" / "systemd" / "sipnap-sidecar.service").read_text()
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    serve = cli.parser_of("serve", cli.load(cli.entry_points()["serve"]))
    assert int(patience) > resolve(serve, [], environment={}).drain_seconds


def test_make_help_has_one_line_for_each_target() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    targets = [line.split()[1] for line in said.splitlines() if line.startswith("make ")]
    assert set(targets) >= {"help", "demo", "test", "check", "protos", "bench"}
    assert len(set(targets)) == len(targets)
