"""Where a command's settings come from: flags, then environment, then a TOML file, then the default.

A command declares argparse flags and nothing else. The flag ``--max-seconds`` of ``sipnap serve`` is also the
environment variable ``SIPNAP_MAX_SECONDS`` and the key ``max_seconds`` in the file's table ``[serve]``; a flag of
``sipnap shim kamailio`` stands in ``[shim.kamailio]``. What several commands share (`COMMON_KEYS`) may stand above
the first table.

- A flag that repeats, or takes several values, is a list in the file (or one value), and words in the environment,
  quoted as in a shell.
- A switch is ``true`` or ``false`` in the file and 1/0, true/false, yes/no or on/off in the environment.
- An empty environment variable counts as not set: that is how service managers write "nothing".
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ENVIRONMENT_PREFIX = "SIPNAP_"
"""Begins the name of every environment variable that is a setting."""

COMMON_KEYS = frozenset({"log_level", "log_format", "sidecar"})
"""Keys that may stand above the file's first table: each command that has such a setting takes it from there."""

CONFIG = "config"
"""The setting that names the file; the only one that cannot stand in it."""

_WORDS_OF_TRUTH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SWITCHES = (
    argparse._StoreTrueAction,
    argparse._StoreFalseAction,
    argparse.BooleanOptionalAction,
)  # argparse names only one of them
_NAME_OF_TYPE: dict[object, str] = {int: "whole number", float: "number"}


class SettingError(ValueError):
    """A setting is missing, unknown or malformed; the message names it and where it came from."""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A settings file as it was read."""

    path: Path
    """Where it was read."""
    content: Mapping[str, Any]
    """Its tables and keys."""

    def table(self, section: str) -> Mapping[str, Any]:
        """The table of one command (``serve``, ``shim.kamailio``); empty if the file has none.

        Raises:
            SettingError: There is something by that name that is no table.
        """
        found = self.content
        for name in section.split("."):
            inner = found.get(name, {})
            if not isinstance(inner, Mapping):
                raise SettingError(f"{self.path}: {name}: expected a table, [{section}]")
            found = inner
        return found


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, raised as `SettingError`."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # A script that relies on an abbreviation breaks on the day when another flag begins alike.
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it ended the process."""
        raise SettingError(f"{message} (see {self.prog} --help)")


def seconds(text: str) -> float:
    """A flag's type: a number of seconds above 0, with decimals if need be."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not a number of seconds") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("not a number of seconds above 0")
    return value


def count(text: str) -> int:
    """A flag's type: a whole number from 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError("not a whole number from 1")
    return int(text)


def host_port(text: str) -> str:
    """A flag's type: ``HOST:PORT`` with a port from 0 to 65535, an IPv6 host in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError("not HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise argparse.ArgumentTypeError("not HOST:PORT; write an IPv6 address in brackets, [::1]:5600")
    return text


def read_file(path: Path, sections: Sequence[str]) -> SettingsFile:
    """Read a settings file and check the names of its tables and of what stands above them.

    Args:
        path: The file.
        sections: Every table that the file may have, such as ``serve`` and ``shim.kamailio``.

    Raises:
        SettingError: The file cannot be read, is no TOML, or has a name that nothing answers to.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise SettingError(f"{path}: cannot be read: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingError(f"{path}: is no TOML: {problem}") from None
    groups = {section.rpartition(".")[0] for section in sections} - {""}
    for name, value in content.items():
        if isinstance(value, dict):
            tables = [f"{name}.{inner}" for inner in value] if name in groups else [name]
            for table in tables:
                if table not in sections:
                    raise SettingError(
                        f"{path}: [{table}]: no command has this table{_or_rather(table, sections, '[{}]')}"
                    )
        elif name not in COMMON_KEYS:
            hint = _or_rather(name, COMMON_KEYS) or "; put it into the table of a command, such as [serve]"
            raise SettingError(f"{path}: {name}: unknown setting above the first table{hint}")
    return SettingsFile(path, content)


def resolve(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    section: str = "",
    file: SettingsFile | None = None,
) -> argparse.Namespace:
    """Fill in every setting that a parser declares, each from the first source that has it.

    Args:
        parser: Declares the settings; left as it was.
        words: The command line after the command's name.
        environment: Variables, as in `os.environ`.
        section: The command's table in the file.
        file: The settings file, if there is one.

    Raises:
        SettingError: A setting is missing, unknown or malformed.
    """
    options = dict(_options_of(parser))
    flags = _parse_flags(parser, list(options.values()), words)
    table = _table_of(file, section, options) if file else {}
    for name, action in options.items():
        if getattr(flags, action.dest) is not None:
            continue
        variable = variable_of(name)
        if environment.get(variable):
            text = environment[variable]
            value = _from_text(action, text, f'{variable}="{text}"')
        elif name in table:
            where, found = table[name]
            value = _from_toml(action, found, where)
        elif action.required:
            in_file = f"{name} in [{section}]" if section else name
            raise SettingError(
                f"--{name.replace('_', '-')} is required (or {variable}, or {in_file} of a settings file)"
            )
        else:
            value = _default_of(action)
        setattr(flags, action.dest, value)
    return flags


def variable_of(name: str) -> str:
    """The environment variable of a setting: ``SIPNAP_MAX_SECONDS`` for ``max_seconds``."""
    return ENVIRONMENT_PREFIX + name.upper()


def names_of(parser: argparse.ArgumentParser) -> list[str]:
    """The names of all settings that a parser declares, as they stand in the file (``max_seconds``)."""
    return [name for name, _ in _options_of(parser)]


def misspelt_variables(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> Iterator[str]:
    """One line for each environment variable that is none of the parser's but looks like one.

    Only near misses: other commands have variables of their own, and cluster managers add some by the service's name.
    """
    variables = [variable_of(name) for name in names_of(parser)]
    for variable in sorted(environment):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in variables:
            for meant in difflib.get_close_matches(variable, variables, n=1, cutoff=0.9):
                yield f"{variable} is no setting of {parser.prog}; did you mean {meant}?"


def _options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:  # argparse offers no other way to list them
        long_options = [option for option in action.option_strings if option.startswith("--")]
        if long_options and not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            yield long_options[0].removeprefix("--").replace("-", "_"), action


def _parse_flags(
    parser: argparse.ArgumentParser, actions: Sequence[argparse.Action], words: Sequence[str]
) -> argparse.Namespace:
    """Parse the command line alone: an option that is not on it is None, whatever its default."""
    required = [action for action in actions if action.required]
    try:
        for action in required:
            action.required = False  # another source may have it
        # argparse fills in defaults only for what the namespace does not have yet.
        return parser.parse_args(words, argparse.Namespace(**{action.dest: None for action in actions}))
    finally:
        for action in required:
            action.required = True


def _table_of(file: SettingsFile, section: str, options: Mapping[str, argparse.Action]) -> dict[str, tuple[str, Any]]:
    """The file's values for one command, each with the words that say where it stands."""
    table = {name: (f"{file.path}: {name}", file.content[name]) for name in COMMON_KEYS & file.content.keys()}
    for name, value in file.table(section).items() if section else ():
        where = f"{file.path}: [{section}] {name}"
        if name not in options or name == CONFIG:
            raise SettingError(f"{where}: unknown setting{_or_rather(name, options)}")
        table[name] = (where, value)
    return table


def _from_text(action: argparse.Action, text: str, where: str) -> Any:
    if isinstance(action, _SWITCHES):
        truth = _WORDS_OF_TRUTH.get(text.strip().lower())
        if truth is None:
            raise SettingError(f"{where}: not one of 1, 0, true, false, yes, no, on, off")
        return _switched(action, truth)
    if not _takes_several(action):
        return _converted(action, text, where)
    try:
        return [_converted(action, word, where) for word in shlex.split(text)]
    except ValueError as problem:
        if isinstance(problem, SettingError):
            raise
        raise SettingError(f"{where}: not words as a shell quotes them: {problem}") from None


def _from_toml(action: argparse.Action, value: Any, where: str) -> Any:
    shown = f"{where} = {_as_toml(value)}"
    if isinstance(action, _SWITCHES):
        if not isinstance(value, bool):
            raise SettingError(f"{shown}: not true or false")
        return _switched(action, value)
    if _takes_several(action):
        items = value if isinstance(value, list) else [value]
        return [_converted(action, _scalar(item, shown), shown) for item in items]
    return _converted(action, _scalar(value, shown), shown)


def _scalar(value: Any, where: str) -> str:
    # All goes through the flag's own type, so that a value means the same wherever it stands.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SettingError(f"{where}: not a string or a number")
    return str(value)


def _switched(action: argparse.Action, truth: bool) -> bool:
    return not truth if isinstance(action, argparse._StoreFalseAction) else truth


def _takes_several(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction) or action.nargs not in (None, "?")


def _converted(action: argparse.Action, text: str, where: str) -> Any:
    convert: Callable[[str], Any] = action.type if callable(action.type) else str
    try:
        value = convert(text)
    except argparse.ArgumentTypeError as problem:
        raise SettingError(f"{where}: {problem}") from None
    except (TypeError, ValueError):
        name = _NAME_OF_TYPE.get(convert, getattr(convert, "__name__", "value"))
        raise SettingError(f"{where}: not a {name}") from None
    if action.choices is not None and value not in action.choices:
        raise SettingError(f"{where}: not one of {', '.join(map(str, action.choices))}")
    return value


def _default_of(action: argparse.Action) -> Any:
    # Like argparse: a default that is text goes through the type, any other is taken as it is.
    if isinstance(action.default, str) and callable(action.type):
        return action.type(action.default)
    return list(action.default) if isinstance(action.default, list) else action.default


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _or_rather(name: str, known: Sequence[str] | Mapping[str, Any] | frozenset[str], form: str = "{}") -> str:
    close = difflib.get_close_matches(re.sub(r"-", "_", name), list(known), n=1)
    return f"; did you mean {form.format(close[0])}?" if close else ""
