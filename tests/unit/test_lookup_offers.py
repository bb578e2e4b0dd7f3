"""Which lookups a sidecar offers, by its settings."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

import pytest

from sipnap.sidecar.lookups import http_settings, offers

ROOT = Path(__file__).parents[2]


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    offers.configure(parser)
    return parser.parse_args(words)


def test_http_is_offered_to_allowed_hosts_only_and_enum_anyway(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = ("--enum-server", "127.0.0.1:5353")
    assert offers.operations_from(_arguments(*server))[0].keys() == {"enum"}
    assert "http is not offered: --http-allow" in caplog.text
    assert offers.operations_from(_arguments("--http-allow", "h", *server))[0].keys() == {"http", "enum"}


async def test_closing_what_was_never_used_is_harmless() -> None:
    _, close = offers.operations_from(_arguments("--http-allow", "h", "--enum-server", "127.0.0.1"))
    await close()


def test_a_missing_package_is_named_if_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for module in ("http", "enum"):
        monkeypatch.setitem(sys.modules, f"sipnap.sidecar.lookups.{module}", None)
    assert offers.operations_from(_arguments())[0] == {}
    assert "pip install 'sipnap[enum]'" in caplog.text
    with pytest.raises(ValueError, match=r"pip install 'sipnap\[http\]'"):
        offers.operations_from(_arguments("--http-allow", "h"))
    with pytest.raises(ValueError, match=r"pip install 'sipnap\[enum\]'"):
        offers.operations_from(_arguments("--enum-domain", "e164.test"))


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("[::1]:5353", ("::1", 5353)),
        ("[::1]", ("::1", 53)),
        ("::1", ("::1", 53)),
    ],
)
def test_the_forms_of_a_name_server(text: str, server: tuple[str, int]) -> None:
    assert _arguments("--enum-server", text).enum_server == [server]


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "[::1]:x", "[127.0.0.1"]
)
def test_what_is_no_name_server(text: str) -> None:
    with pytest.raises(argparse.ArgumentError):
        _arguments("--enum-server", text)


def test_the_page_for_operators_says_what_the_code_does(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "lookups.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "sidecar/sipnap/sidecar/lookups").glob("*.py"))
    codes = set(re.findall(r'"((?:http|enum)_[a-z_]+)"', source)) - {"http_allow", "http_templates"}
    assert set(re.findall(r"^\| `((?:http|enum)_[a-z_]+)` \|", page, re.MULTILINE)) == codes
    parser = argparse.ArgumentParser(add_help=False)
    offers.configure(parser)
    assert set(re.findall(r"^\| `(--[a-z-]+) ", page, re.MULTILINE)) == set(parser._option_string_actions)
    (table,) = re.findall(r"\| setting \| default .*?\n\n", page, re.DOTALL)
    assert re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE) == list(http_settings._SETTINGS)
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    templates = tmp_path / "http.toml"
    templates.write_text(example)
    assert http_settings.read_templates(templates).keys() == {"route", "fraud"}
