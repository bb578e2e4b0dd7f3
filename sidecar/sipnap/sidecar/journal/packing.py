"""Entries as bytes: a fixed head, then three short texts and the payload. For journals that keep opaque values."""

from __future__ import annotations

import struct

from sipnap.sidecar.core.suspension import NapKey
from sipnap.sidecar.journal.base import Entry, JournalError

PACKING_VERSION = 1
"""First byte of every packed entry; a higher one was written by a newer sipnap."""

_KEY = struct.Struct(">QIII")
_HEAD = struct.Struct(">BQqqqHHH")


def pack_key(key: NapKey) -> bytes:
    """A nap's key within its front end: 20 bytes, in the order of the key."""
    return _KEY.pack(*key)


def pack(entry: Entry) -> bytes:
    """All of an entry but its key and its front end."""
    route, operation, group = entry.route.encode(), entry.operation.encode(), entry.group.encode()
    head = _HEAD.pack(
        PACKING_VERSION, entry.sequence, entry.accepted_ns, entry.due_ns, entry.deadline_ns,
        len(route), len(operation), len(group),
    )  # fmt: skip
    return b"".join((head, route, operation, group, entry.payload))


def unpack(front_end_id: str, packed_key: bytes, packed: bytes) -> Entry:
    """The entry again.

    Raises:
        JournalError: A newer sipnap wrote it, or nothing like sipnap did.
    """
    if packed[:1] != bytes([PACKING_VERSION]):
        what = f"in layout {packed[0]}, of a newer sipnap" if packed else "empty"
        raise JournalError(f"a nap of front end {front_end_id!r} is {what}; run the version that wrote it")
    try:
        _, sequence, accepted_ns, due_ns, deadline_ns, *lengths = _HEAD.unpack_from(packed)
        texts = []
        offset = _HEAD.size
        for length in lengths:
            texts.append(packed[offset : offset + length].decode())
            offset += length
        key = NapKey(*_KEY.unpack(packed_key))
    except (struct.error, ValueError) as error:
        raise JournalError(f"a nap of front end {front_end_id!r} is damaged: {error}") from error
    return Entry(
        sequence, front_end_id, *key, texts[0], accepted_ns, due_ns, deadline_ns, texts[1], texts[2], packed[offset:]
    )  # fmt: skip
