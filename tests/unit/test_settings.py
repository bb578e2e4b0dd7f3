"""Where settings come from, in which order, and what is said of a bad one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client import settings
from sipnap.client.settings import Parser, SettingError, read_file, resolve

SECTIONS = ["serve", "shim.kamailio", "status"]


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="sipnap serve")
    parser.add_argument("--max-seconds", type=settings.seconds, default=100.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--listen", type=settings.host_port, default="127.0.0.1:5600")
    parser.add_argument("--avp", action="append", default=[])
    parser.add_argument("--peer", nargs="+")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--no-drain", action="store_false", dest="drain")
    parser.add_argument("--gate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--journal", choices=["memory", "sqlite"], default="memory")
    parser.add_argument("--log-level", choices=["debug", "info"], default="info")
    parser.add_argument("--config", type=Path)
    return parser


def _file(tmp_path: Path, text: str) -> settings.SettingsFile:
    path = tmp_path / "sipnap.toml"
    path.write_text(text)
    return read_file(path, SECTIONS)


def _resolved(
    parser: Parser,
    words: str = "",
    environment: dict[str, str] | None = None,
    file: settings.SettingsFile | None = None,
) -> dict[str, Any]:
    return vars(resolve(parser, words.split(), environment=environment or {}, section="serve", file=file))


def test_defaults_when_nobody_says_anything(parser: Parser) -> None:
    assert _resolved(parser) == {
        "max_seconds": 100.0,
        "workers": 4,
        "listen": "127.0.0.1:5600",
        "avp": [],
        "peer": None,
        "insecure": False,
        "drain": True,
        "gate": True,
        "journal": "memory",
        "log_level": "info",
        "config": None,
    }


def test_flag_before_environment_before_file_before_default(parser: Parser, tmp_path: Path) -> None:
    file = _file(tmp_path, "[serve]\nworkers = 1\n")
    environment = {"SIPNAP_WORKERS": "2"}
    assert _resolved(parser)["workers"] == 4
    assert _resolved(parser, file=file)["workers"] == 1
    assert _resolved(parser, environment=environment, file=file)["workers"] == 2
    assert _resolved(parser, "--workers 3", environment, file)["workers"] == 3


def test_a_flag_that_repeats_its_default_still_wins(parser: Parser) -> None:
    assert _resolved(parser, "--workers 4", {"SIPNAP_WORKERS": "2"})["workers"] == 4
    assert _resolved(parser, "--gate", {"SIPNAP_GATE": "no"})["gate"] is True


def test_every_kind_of_flag_from_the_environment(parser: Parser) -> None:
    found = _resolved(
        parser,
        environment={
            "SIPNAP_MAX_SECONDS": "2.5",
            "SIPNAP_AVP": "one 'two words' three",
            "SIPNAP_PEER": "a b",
            "SIPNAP_INSECURE": "Yes",
            "SIPNAP_NO_DRAIN": "1",
            "SIPNAP_GATE": "off",
            "SIPNAP_JOURNAL": "sqlite",
        },
    )
    assert found["max_seconds"] == 2.5
    assert found["avp"] == ["one", "two words", "three"]
    assert found["peer"] == ["a", "b"]
    assert (found["insecure"], found["drain"], found["gate"]) == (True, False, False)
    assert found["journal"] == "sqlite"


def test_every_kind_of_flag_from_the_file(parser: Parser, tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        """
        log_level = "debug"
        [serve]
        max_seconds = 250
        listen = "[::1]:0"
        avp = ["one", "two words"]
        peer = "a"
        insecure = true
        no_drain = false
        gate = false
        """,
    )
    found = _resolved(parser, file=file)
    assert (found["max_seconds"], found["listen"], found["log_level"]) == (250.0, "[::1]:0", "debug")
    assert (found["avp"], found["peer"]) == (["one", "two words"], ["a"])
    assert (found["insecure"], found["drain"], found["gate"]) == (True, True, False)


def test_a_table_wins_over_what_stands_above_it(parser: Parser, tmp_path: Path) -> None:
    file = _file(tmp_path, 'log_level = "info"\nsidecar = "elsewhere:1"\n[serve]\nlog_level = "debug"\n')
    assert _resolved(parser, file=file)["log_level"] == "debug"


def test_an_empty_variable_counts_as_not_set(parser: Parser) -> None:
    assert _resolved(parser, environment={"SIPNAP_WORKERS": ""})["workers"] == 4


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SIPNAP_MAX_SECONDS": "abc"}, 'SIPNAP_MAX_SECONDS="abc": not a number of seconds'),
        ({"SIPNAP_MAX_SECONDS": "-1"}, 'SIPNAP_MAX_SECONDS="-1": not a number of seconds above 0'),
        ({"SIPNAP_MAX_SECONDS": "inf"}, 'SIPNAP_MAX_SECONDS="inf": not a number of seconds above 0'),
        ({"SIPNAP_WORKERS": "1.5"}, 'SIPNAP_WORKERS="1.5": not a whole number'),
        ({"SIPNAP_INSECURE": "maybe"}, 'SIPNAP_INSECURE="maybe": not one of 1, 0, true, false, yes, no, on, off'),
        ({"SIPNAP_JOURNAL": "paper"}, 'SIPNAP_JOURNAL="paper": not one of memory, sqlite'),
        ({"SIPNAP_AVP": "it's"}, 'SIPNAP_AVP="it\'s": not words as a shell quotes them: No closing quotation'),
        ({"SIPNAP_LISTEN": "::1:5600"}, 'SIPNAP_LISTEN="::1:5600": not HOST:PORT; write an IPv6 address in brackets'),
    ],
)
def test_a_bad_variable_is_named_with_its_value(parser: Parser, environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError) as raised:
        _resolved(parser, environment=environment)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[serve]\nmax_second = 1", "[serve] max_second: unknown setting; did you mean max_seconds?"),
        ("[serve]\nmax-seconds = 1", "[serve] max-seconds: unknown setting; did you mean max_seconds?"),
        ("[serve]\nxyz = 1", "[serve] xyz: unknown setting"),
        ("[serve]\nconfig = 'other.toml'", "[serve] config: unknown setting"),
        ("[serve]\nmax_seconds = 'soon'", '[serve] max_seconds = "soon": not a number of seconds'),
        ("[serve]\nworkers = true", "[serve] workers = true: not a string or a number"),
        ("[serve]\nworkers = [1]", "[serve] workers = [1]: not a string or a number"),
        ("[serve]\ninsecure = 1", "[serve] insecure = 1: not true or false"),
        ("[serve]\navp = true", "[serve] avp = true: not a string or a number"),
        ("[serv]\nworkers = 1", "[serv]: no command has this table; did you mean [serve]?"),
        ("[shim.kamailo]\nworkers = 1", "[shim.kamailo]: no command has this table; did you mean [shim.kamailio]?"),
        ("serve = 1", "serve: unknown setting above the first table"),
        ("max_seconds = 1", "max_seconds: unknown setting above the first table; put it into the table of a command"),
        ("log_levle = 'info'", "log_levle: unknown setting above the first table; did you mean log_level?"),
        ("log_level = 'loud'", 'log_level = "loud": not one of debug, info'),
        ("[serve\n", "is no TOML: "),
    ],
)
def test_a_bad_file_is_named_with_table_and_key(parser: Parser, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError) as raised:
        _resolved(parser, file=_file(tmp_path, text))
    assert str(raised.value).startswith(f"{tmp_path}/sipnap.toml: {message}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nowhere\.toml: cannot be read: No such file or directory"):
        read_file(tmp_path / "nowhere.toml", SECTIONS)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match=r"x\.toml: is no TOML"):
        read_file(tmp_path / "x.toml", SECTIONS)


def test_required_settings_may_come_from_any_source(tmp_path: Path) -> None:
    parser = Parser(prog="sipnap serve")
    parser.add_argument("--front-end-id", required=True)
    assert _resolved(parser, "--front-end-id a")["front_end_id"] == "a"
    assert _resolved(parser, environment={"SIPNAP_FRONT_END_ID": "b"})["front_end_id"] == "b"
    assert _resolved(parser, file=_file(tmp_path, "[serve]\nfront_end_id = 'c'"))["front_end_id"] == "c"
    expected = "--front-end-id is required (or SIPNAP_FRONT_END_ID, or front_end_id in [serve] of a settings file)"
    with pytest.raises(SettingError) as raised:
        _resolved(parser)
    assert str(raised.value) == expected


@pytest.mark.parametrize("words", ["--workers many", "--max-sec 5", "--nonsense", "--workers"])
def test_bad_flags_are_one_line(parser: Parser, words: str) -> None:
    with pytest.raises(SettingError) as raised:
        _resolved(parser, words)
    assert words.partition(" ")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_help_still_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="sipnap serve")
    parser.add_argument("--workers", type=int, default=4, help="so many (default %(default)s)")
    with pytest.raises(SystemExit):
        _resolved(parser, "--help")
    assert "so many (default 4)" in capsys.readouterr().out


def test_the_parser_is_left_as_it_was(parser: Parser) -> None:
    before = [(action.default, action.required) for action in parser._actions]
    _resolved(parser, "--workers 3")
    _resolved(parser)["avp"].append("must not reach the default")
    assert [(action.default, action.required) for action in parser._actions] == before
    assert _resolved(parser)["avp"] == []


def test_positional_arguments_come_from_the_command_line_only(tmp_path: Path) -> None:
    parser = Parser(prog="sipnap cancel")
    parser.add_argument("key")
    with pytest.raises(SettingError, match="key"):
        _resolved(parser, environment={"SIPNAP_KEY": "x"})
    assert _resolved(parser, "k", {"SIPNAP_KEY": "x"})["key"] == "k"


def test_near_misses_in_the_environment_are_told(parser: Parser) -> None:
    environment = {
        "SIPNAP_MAX_SECOND": "5",
        "SIPNAP_WORKERS": "5",
        "SIPNAP_PORT": "tcp://10.0.0.1:5600",  # as Kubernetes sets it for a service named sipnap
        "SIPNAP_FRONT_END_ID": "of another command",
        "OTHER_WORKERS": "5",
    }
    assert list(settings.misspelt_variables(parser, environment)) == [
        "SIPNAP_MAX_SECOND is no setting of sipnap serve; did you mean SIPNAP_MAX_SECONDS?"
    ]


@given(st.text())
def test_types_take_what_they_print_and_refuse_the_rest_alike(text: str) -> None:
    for kind in (settings.seconds, settings.count, settings.host_port):
        try:
            value = kind(text)
        except argparse.ArgumentTypeError:
            continue
        assert kind(str(value)) == value
