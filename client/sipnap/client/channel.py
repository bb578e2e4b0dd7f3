"""How a client reaches a sidecar: target, TLS, and the HTTP/2 settings that both ends agree on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

DEFAULT_TARGET = "127.0.0.1:5600"
"""Where `sipnap serve` listens unless told otherwise."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest gRPC message either way, in bytes; sessions cut their batches far below it."""

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A sidecar that is stopped, or a network that swallows packets, is noticed within seconds, not with TCP's minutes.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # gRPC's own back-off reaches two minutes; a proxy cannot wait for that. Sessions add their own jitter.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Never through an HTTP proxy that some environment variable names: a sidecar is near.
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS client. With a certificate and key of its own it is mutual TLS."""

    ca: Path | None = None
    """Certificates that the sidecar's is checked against; None: the system's."""
    certificate: Path | None = None
    """The client's own certificate chain."""
    private_key: Path | None = None
    """The key that belongs to it."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Channel credentials from the files.

        Raises:
            OSError: A file cannot be read.
            ValueError: Only one of certificate and key is given.
        """
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("a client certificate and its private key go together: give both or none")
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.private_key.read_bytes() if self.private_key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


def open_aio(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """An asyncio channel to `target` (``HOST:PORT`` or ``unix:PATH``); without credentials in plain text."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)


def open_sync(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A blocking channel to `target` (``HOST:PORT`` or ``unix:PATH``); without credentials in plain text."""
    if credentials is None:
        return grpc.insecure_channel(target, options=_OPTIONS)
    return grpc.secure_channel(target, credentials, options=_OPTIONS)
