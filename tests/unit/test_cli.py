"""The command `sipnap`: finding commands, and one line with the right exit code for all that can go wrong."""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sipnap.client import cli, logs
from sipnap.client.errors import Full
from sipnap.client.settings import SettingError

Run = Callable[[argparse.Namespace], int]


class _Registered:
    """An entry point without a distribution behind it."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self.load = load


def _command(run: Run, summary: str = "a command for tests") -> Any:
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--word", default="nothing")

    return SimpleNamespace(SUMMARY=summary, EPILOG="examples:\n  sipnap nap", configure=configure, run=run)


def _missing(module: str) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    return fail


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in [name for name in os.environ if name.startswith("SIPNAP_")]:
        monkeypatch.delenv(variable)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Callable[[], Any]]], None]:
    def replace(loaders: Mapping[str, Callable[[], Any]]) -> None:
        commands = {name: _Registered(name, load) for name, load in loaders.items()}
        monkeypatch.setattr(cli, "entry_points", lambda: commands)

    return replace


Register = Callable[[Mapping[str, Callable[[], Any]]], None]


def test_only_the_command_that_is_meant_is_loaded(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        print(arguments.word)
        return 7

    register({"nap": lambda: _command(run), "shim.other": lambda: pytest.fail("loaded without need")})
    assert cli.main(["nap", "--word", "good"]) == 7
    assert capsys.readouterr().out == "good\n"


def test_a_command_of_two_words_has_a_table_with_a_dot(
    register: Register, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        print(arguments.word)
        return 0

    register({"shim.nap": lambda: _command(run)})
    (tmp_path / "x.toml").write_text("[shim.nap]\nword = 'from the file'\n")
    assert cli.main(["shim", "nap", "--config", str(tmp_path / "x.toml")]) == 0
    assert capsys.readouterr().out == "from the file\n"


def test_the_environment_may_name_the_file(
    register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        print(arguments.word)
        return 0

    register({"nap": lambda: _command(run)})
    (tmp_path / "x.toml").write_text("[nap]\nword = 'from the file'\n")
    monkeypatch.setenv("SIPNAP_CONFIG", str(tmp_path / "x.toml"))
    assert cli.main(["nap"]) == 0
    assert capsys.readouterr().out == "from the file\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nip"], "sipnap: there is no command 'nip'; did you mean 'nap'?"),
        (["qqqq"], "sipnap: there is no command 'qqqq'; see sipnap --help"),
        (["shim", "kamailo"], "sipnap: there is no command 'shim kamailo'; did you mean 'shim kamailio'?"),
        (["--word", "x", "nap"], "sipnap: a command comes first; see sipnap --help"),
        (["\x1b[2J"], r"sipnap: there is no command '\x1b[2J'; see sipnap --help"),
        (["nap", "--wrod", "x"], "sipnap nap: unrecognized arguments: --wrod x (see sipnap nap --help)"),
        (["nap", "--config", "/nowhere"], "sipnap nap: /nowhere: cannot be read: No such file or directory"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_2(
    register: Register, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    register({"nap": lambda: _command(lambda _: 0), "shim.kamailio": lambda: _command(lambda _: 0)})
    assert cli.main(words) == cli.EXIT_USAGE
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", message + "\n")


def test_what_the_sidecar_refuses_is_one_line_and_1(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: argparse.Namespace) -> int:
        raise Full("full:\nmax-pending is 3")

    register({"nap": lambda: _command(run)})
    assert cli.main(["nap"]) == cli.EXIT_FAILED
    assert capsys.readouterr().err == "sipnap nap: full:\\nmax-pending is 3\n"


@pytest.mark.parametrize("when", ["loading", "running"])
def test_a_missing_extra_is_named(register: Register, capsys: pytest.CaptureFixture[str], when: str) -> None:
    fail = _missing("grpc_health.v1")
    register({"serve": fail if when == "loading" else lambda: _command(fail)})
    assert cli.main(["serve"]) == cli.EXIT_USAGE
    expected = "sipnap serve needs the module grpc_health.v1; run: pip install 'sipnap[sidecar]'\n"
    assert capsys.readouterr().err.removeprefix("sipnap serve: ") == expected


def test_a_module_that_no_extra_brings_is_no_usage_error(register: Register) -> None:
    register({"nap": lambda: _command(_missing("of_the_users_routes_file"))})
    with pytest.raises(ModuleNotFoundError):
        cli.main(["nap"])


def test_an_interrupt_is_quiet_and_130(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    register({"nap": lambda: _command(run)})
    assert cli.main(["nap"]) == 130
    assert capsys.readouterr() == ("", "")


def test_the_overview_has_every_command_and_survives_a_broken_one(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register({
        "nap": lambda: _command(lambda _: 0, "take a nap"),
        "shim.kamailio": lambda: _command(lambda _: 0, "stand beside Kamailio"),
        "broken": _missing("somebody.elses"),
        "extra": _missing("sippy"),
    })  # fmt: skip
    assert cli.main(["--help"]) == 0
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["nap", "take a nap"] in lines
    assert ["shim kamailio", "stand beside Kamailio"] in lines
    assert ["broken", "(cannot be loaded: No module named 'somebody.elses')"] in lines
    assert any(line[0] == "extra" and "pip install 'sipnap[sip]'" in line[1] for line in lines)


def test_help_without_being_asked_is_an_error(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    register({"shim.kamailio": lambda: _command(lambda _: 0), "nap": lambda: _command(lambda _: 0)})
    for words in ([], ["shim"]):
        assert cli.main(words) == cli.EXIT_USAGE
        said = capsys.readouterr()
        assert said.out == ""
        assert "shim kamailio" in said.err
    assert cli.main(["shim", "--help"]) == 0
    overview = capsys.readouterr().out
    assert "shim kamailio" in overview
    assert "  nap" not in overview


def test_the_help_of_a_command_has_its_examples_and_the_common_settings(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register({"shim.nap": lambda: _command(lambda _: 0)})
    assert cli.main(["shim", "nap", "--help"]) == 0
    said = capsys.readouterr().out
    for expected in (
        "usage: sipnap shim nap",
        "--word",
        "--config FILE",
        "table [shim.nap]",
        "--log-level",
        "sipnap nap",
    ):
        assert expected in said


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sipnap {metadata.version('sipnap')}\n"


@pytest.mark.parametrize("name", sorted(cli.entry_points()))
def test_every_registered_command_is_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.load(cli.entry_points()[name])
    assert command.SUMMARY
    assert "\n" not in command.SUMMARY
    assert command.EPILOG.strip()
    parser = cli.parser_of(name, command)
    for action in parser._actions:
        assert action.help, f"{action.option_strings or action.dest} has no help"
        # A cluster manager sets SIPNAP_PORT by itself for a service of that name.
        assert "--port" not in action.option_strings
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert all(len(line) <= 120 for line in capsys.readouterr().out.splitlines())


def test_the_documented_names_are_registered() -> None:
    assert set(cli.entry_points()) >= {"serve", "shim.kamailio", "shim.sip", "status", "list", "cancel", "demo"}


def test_tls_files_that_do_not_fit_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["status", "--tls-ca", str(tmp_path / "none.pem")]) == cli.EXIT_USAGE
    assert capsys.readouterr().err == f"sipnap status: {tmp_path}/none.pem: cannot be read: No such file or directory\n"
    (tmp_path / "x.pem").write_text("x")
    assert cli.main(["status", "--tls-cert", str(tmp_path / "x.pem")]) == cli.EXIT_USAGE
    assert "--tls-cert and --tls-key: " in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    program = (
        "import sys; from types import SimpleNamespace as N; from sipnap.client import cli;"
        "command = N(SUMMARY='', EPILOG='', configure=lambda p: None, run=lambda a: print('x\\n' * 200_000) or 0);"
        "cli.entry_points = lambda: {'nap': N(name='nap', load=lambda: command)};"
        "sys.exit(cli.main(['nap']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == cli.EXIT_BROKEN_PIPE


def test_log_settings_reach_the_log(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: argparse.Namespace) -> int:
        logging.getLogger("sipnap.test").debug("deep key=%s", "value")
        return 0

    register({"nap": lambda: _command(run)})
    assert cli.main(["nap", "--log-level", "debug", "--log-format", "json"]) == 0
    assert '"event": "deep", "key": "value"' in capsys.readouterr().err
    assert set(logs.LEVELS) >= {"debug", "info", "warning", "error"}


def test_setting_errors_are_value_errors() -> None:
    # Programs that resolve settings themselves need to know no class of ours.
    assert issubclass(SettingError, ValueError)
