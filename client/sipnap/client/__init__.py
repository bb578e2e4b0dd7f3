"""The Python client of sipnap: `aio.Client`, `sync.Client`, and `session.FrontEndSession` for front ends."""

from sipnap.client import aio, errors, sync
from sipnap.client.channel import DEFAULT_TARGET, TlsFiles
from sipnap.client.errors import NapError
from sipnap.client.keys import SuspensionKey, key_of
from sipnap.client.session import FrontEndSession

__all__ = [
    "DEFAULT_TARGET",
    "FrontEndSession",
    "NapError",
    "SuspensionKey",
    "TlsFiles",
    "aio",
    "errors",
    "key_of",
    "sync",
]
