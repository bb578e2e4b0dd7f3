"""The command `sipnap`: finds the command that is meant, fills in its settings, runs it, says in one line what failed.

Commands are modules that are registered as entry points of the group `sipnap.commands`, so that the client needs to
know neither the sidecar nor the shims. A dot in an entry point's name is a space on the command line. Only the module
of the command that is meant is loaded.
"""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol, cast

from sipnap.client import logs
from sipnap.client.errors import NapError
from sipnap.client.settings import (
    CONFIG,
    Parser,
    SettingError,
    SettingsFile,
    misspelt_variables,
    read_file,
    resolve,
    variable_of,
)

ENTRY_POINT_GROUP = "sipnap.commands"
"""Where a distribution registers commands."""

EXTRA_OF_MODULE = {
    "grpc_health": "sidecar",
    "grpc_reflection": "sidecar",
    "platformdirs": "sidecar",
    "prometheus_client": "sidecar",
    "redis": "redis",
    "sippy": "sip",
}
"""The extra of this distribution that brings a module which the base install does not have."""

EXIT_FAILED, EXIT_USAGE = 1, 2
"""What was asked for could not be done; what was asked for makes no sense."""

EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141
"""As a shell reports a process that SIGINT or SIGPIPE ended."""


class Command(Protocol):
    """What a command's module has."""

    SUMMARY: str
    """One line for the list of commands."""
    EPILOG: str
    """Examples, shown under --help."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's flags."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; the result is the exit code.

        `arguments.reread()` gives all settings anew, for those that may change at run time; it raises `SettingError`.
        """


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that the words ask for, the process's own arguments unless given; the result is the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What SIP sent need not fit into the terminal's encoding; that is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if words is None else words), os.environ)
        sys.stdout.flush()  # here, where a closed pipe is still ours to notice
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone: nothing to say, also not when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def parser_of(name: str, command: Command) -> Parser:
    """The parser of one command, with the flags that all commands share; `name` is the entry point's."""
    parser = Parser(prog=_program_of(name), description=command.SUMMARY, epilog=command.EPILOG)
    command.configure(parser)
    common = parser.add_argument_group("common settings")
    common.add_argument(
        f"--{CONFIG}", type=Path, metavar="FILE", help=f"read settings from a TOML file, table [{name}] (default: none)"
    )
    common.add_argument(
        "--log-level", choices=logs.LEVELS, default="info", help="the least that is logged (default: %(default)s)"
    )
    common.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default="text",
        help="text for people, json for collectors; both on stderr, a line an event (default: %(default)s)",
    )
    return parser


def load(entry_point: metadata.EntryPoint) -> Command:
    """The module of a command.

    Raises:
        SettingError: It needs what an extra brings.
    """
    try:
        return cast(Command, entry_point.load())
    except ModuleNotFoundError as missing:
        raise _extra_missing(_program_of(entry_point.name), missing) from missing


def entry_points() -> dict[str, metadata.EntryPoint]:
    """All commands by the names of their entry points, such as ``serve`` and ``shim.kamailio``."""
    return {found.name: found for found in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def _run(words: list[str], environment: Mapping[str, str]) -> int:
    commands = entry_points()
    match words:
        case ["--version"]:
            print(f"sipnap {metadata.version('sipnap')}")
            return 0
        case [] | ["-h" | "--help"]:
            print(_overview(commands), file=sys.stdout if words else sys.stderr)
            return 0 if words else EXIT_USAGE
    name = _longest_name(words, commands)
    if name is None:
        return _no_such_command(words, commands)
    program = _program_of(name)
    try:
        return _run_command(name, commands, words[name.count(".") + 1 :], environment)
    except SettingError as problem:
        print(f"{program}: {logs.escaped(str(problem))}", file=sys.stderr)
        return EXIT_USAGE
    except NapError as problem:
        print(f"{program}: {logs.escaped(str(problem))}", file=sys.stderr)
        return EXIT_FAILED
    except SystemExit as end:  # argparse ends the process after --help
        return end.code if isinstance(end.code, int) else 0


def _run_command(
    name: str, commands: Mapping[str, metadata.EntryPoint], words: Sequence[str], environment: Mapping[str, str]
) -> int:
    command = load(commands[name])
    parser = parser_of(name, command)
    file = _settings_file(words, environment, list(commands))

    def reread() -> argparse.Namespace:
        again = _settings_file(words, environment, list(commands))
        return resolve(parser, words, environment=environment, section=name, file=again)

    arguments = resolve(parser, words, environment=environment, section=name, file=file)
    arguments.reread = reread
    logs.setup(arguments.log_level, arguments.log_format)
    for line in misspelt_variables(parser, environment):
        logging.getLogger("sipnap.settings").warning("%s", line)
    try:
        return command.run(arguments)
    except ModuleNotFoundError as missing:
        raise _extra_missing(parser.prog, missing) from missing


def _settings_file(
    words: Sequence[str], environment: Mapping[str, str], sections: Sequence[str]
) -> SettingsFile | None:
    """The settings file that the flags or the environment name; read before the other settings, which may be in it."""
    first_look = Parser(add_help=False)
    first_look.add_argument(f"--{CONFIG}", type=Path)
    path = first_look.parse_known_args(words)[0].config or environment.get(variable_of(CONFIG))
    return read_file(Path(path), sections) if path else None


def _longest_name(words: Sequence[str], commands: Mapping[str, metadata.EntryPoint]) -> str | None:
    names = (".".join(words[:length]) for length in range(len(words), 0, -1))
    return next((name for name in names if name in commands), None)


def _no_such_command(words: Sequence[str], commands: Mapping[str, metadata.EntryPoint]) -> int:
    """Help with a group of commands (``sipnap shim --help``), or a hint at what may have been meant."""
    group = {name: found for name, found in commands.items() if name.startswith(f"{words[0]}.")}
    if group and words[1:] in ([], ["-h"], ["--help"]):
        print(_overview(group), file=sys.stdout if words[1:] else sys.stderr)
        return 0 if words[1:] else EXIT_USAGE
    typed = " ".join(words[:2] if group else words[:1])
    known = [name.replace(".", " ") for name in commands]
    close = difflib.get_close_matches(typed, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "see sipnap --help"
    what = "a command comes first" if typed.startswith("-") else f"there is no command '{logs.escaped(typed)}'"
    print(f"sipnap: {what}; {hint}", file=sys.stderr)
    return EXIT_USAGE


def _overview(commands: Mapping[str, metadata.EntryPoint]) -> str:
    width = max((len(name) for name in commands), default=0)
    lines = ["usage: sipnap COMMAND [FLAG ...]", "       sipnap COMMAND --help", "       sipnap --version", ""]
    for name in sorted(commands):
        try:
            summary = load(commands[name]).SUMMARY
        except Exception as problem:  # of whatever command some other package registered: the list is worth more
            summary = f"(cannot be loaded: {problem})"
        lines.append(f"  {name.replace('.', ' '):{width}}  {summary}")
    lines += [
        "",
        "Every flag is also an environment variable (SIPNAP_LISTEN) and a key of a TOML file (--config FILE).",
    ]
    return "\n".join(lines)


def _extra_missing(program: str, missing: ModuleNotFoundError) -> Exception:
    """What to raise for a module that is not there: a line with the extra, or the error itself if none brings it."""
    extra = EXTRA_OF_MODULE.get((missing.name or "").partition(".")[0])
    if extra is None:
        return missing
    return SettingError(f"{program} needs the module {missing.name}; run: pip install 'sipnap[{extra}]'")


def _program_of(name: str) -> str:
    return f"sipnap {name.replace('.', ' ')}"
