"""The flags that say which sidecar is meant, and the client that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from sipnap.client.channel import DEFAULT_TARGET, TlsFiles
from sipnap.client.errors import NapError, Unavailable
from sipnap.client.settings import SettingError
from sipnap.client.sync import Client


def configure(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Declare the flags; with `several`, --sidecar may be repeated and `targets_of` tells what was given."""
    group = parser.add_argument_group("which sidecar")
    where = f"where it listens, HOST:PORT or unix:PATH (default: {DEFAULT_TARGET})"
    if several:
        group.add_argument(
            "--sidecar", action="append", default=None, metavar="TARGET",
            help=f"{where}; repeated: the first that answers, the next when it drains or dies",
        )  # fmt: skip
    else:
        group.add_argument("--sidecar", default=DEFAULT_TARGET, metavar="TARGET", help=where)
    group.add_argument("--tls", action="store_true", help="use TLS with the system's authorities (default: plain text)")
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="use TLS, and trust these certificates (PEM)")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="own certificate chain for mutual TLS (PEM)")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="the key of --tls-cert (PEM)")


def targets_of(arguments: argparse.Namespace) -> list[str]:
    """The sidecars that a command which takes several was given."""
    return list(arguments.sidecar or [DEFAULT_TARGET])


def credentials_of(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """The TLS credentials that the flags describe; None for plain text.

    Raises:
        SettingError: The files do not fit together or cannot be read.
    """
    if not (arguments.tls or arguments.tls_ca or arguments.tls_cert or arguments.tls_key):
        return None
    try:
        return TlsFiles(arguments.tls_ca, arguments.tls_cert, arguments.tls_key).credentials()
    except OSError as problem:
        raise SettingError(f"{problem.filename}: cannot be read: {problem.strerror}") from None
    except ValueError as problem:
        raise SettingError(f"--tls-cert and --tls-key: {problem}") from None


@contextmanager
def connect(arguments: argparse.Namespace) -> Iterator[Client]:
    """The client that the flags describe.

    Raises:
        SettingError: The TLS files do not fit together or cannot be read.
        NapError: The call inside failed; when nobody answered, the message says what to do about it.
    """
    with Client(arguments.sidecar, credentials=credentials_of(arguments)) as client:
        try:
            yield client
        except Unavailable as problem:
            raise NapError(f"{problem}; is it running ('sipnap serve'), and are --sidecar and --tls-* right?") from None
