"""Entries as bytes: a fixed head, then three short texts and the payload. What all journals keep."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sipnap.sidecar.core.suspension import Held, NapKey
from sipnap.sidecar.journal.base import Entry, JournalError

PACKING_VERSION = 1
"""First byte of every packed entry; a higher one was written by a newer sipnap."""

_KEY_BYTES = 20
_NAME_SIZES = [bytes((size,)) for size in range(129)]  # a front end's id has at most 128 characters, all ASCII
_HEAD = struct.Struct(">BQqqqHHH")
_KEY_AND_HEAD = struct.Struct(">20sBQqqqHHH")


def pack(held: Held, offset_ns: int, accepted_ns: int) -> bytes:
    """All of a suspension but its key and its front end.

    Args:
        held: Which.
        offset_ns: From the monotonic clock to the time of day: `sipnap.sidecar.journal.base.wall_offset_ns`.
        accepted_ns: When it is accepted, nanoseconds since 1970.
    """
    route = held.route.encode()
    due_ns = int(held.due_seconds * 1e9) + offset_ns
    deadline_ns = due_ns + int(held.linger_seconds * 1e9)
    work = held.work
    if work is None or not work.names:
        head = _HEAD.pack(PACKING_VERSION, held.sequence, accepted_ns, due_ns, deadline_ns, len(route), 0, 0)
        return b"".join((head, route, held.payload))
    return pack_fields(
        held.sequence, held.route, accepted_ns, due_ns, deadline_ns, work.names[0], work.group, held.payload
    )


def pack_fields(
    sequence: int,
    route: str,
    accepted_ns: int,
    due_ns: int,
    deadline_ns: int,
    operation: str,
    group: str,
    payload: bytes,
) -> bytes:
    """`pack` from the fields of an `Entry`."""
    texts = route.encode(), operation.encode(), group.encode()
    head = _HEAD.pack(PACKING_VERSION, sequence, accepted_ns, due_ns, deadline_ns, *map(len, texts))
    return b"".join((head, *texts, payload))


def pack_whole(front_end_id: str, packed_key: bytes, packed: bytes) -> bytes:
    """All of a suspension; `packed` from `pack`."""
    return b"".join((_NAME_SIZES[len(front_end_id)], front_end_id.encode("ascii"), packed_key, packed))


def pack_all(added: Sequence[Held], offset_ns: int, accepted_ns: int) -> tuple[list[int], bytes]:
    """`pack_whole` of `pack` of each: their sizes, and all of them in one.

    This is done for every nap: so all at once, what is alike is done once, and each payload is copied once.
    """
    pack_plain = _KEY_AND_HEAD.pack
    front_end = route = linger_seconds = None
    owner = encoded_route = b""
    linger_ns = 0
    sizes: list[int] = []
    parts: list[bytes] = []
    for held in added:
        if held.front_end is not front_end:
            front_end = held.front_end
            owner = pack_whole(front_end.front_end_id, b"", b"")
        work, payload = held.work, held.payload
        if work is not None and work.names:
            packed = pack(held, offset_ns, accepted_ns)
            parts += (owner, held.packed_key, packed)
            sizes.append(len(owner) + _KEY_BYTES + len(packed))
            continue
        if held.route is not route:
            route = held.route
            encoded_route = route.encode()
        if held.linger_seconds != linger_seconds:
            linger_seconds = held.linger_seconds
            linger_ns = int(linger_seconds * 1e9)
        due_ns = int(held.due_seconds * 1e9) + offset_ns
        head = pack_plain(
            held.packed_key, PACKING_VERSION, held.sequence, accepted_ns, due_ns, due_ns + linger_ns,
            len(encoded_route), 0, 0,
        )  # fmt: skip
        parts += (owner, head, encoded_route, payload)
        sizes.append(len(owner) + len(head) + len(encoded_route) + len(payload))
    return sizes, b"".join(parts)


def unpack_whole(packed: bytes) -> Entry:
    """The entry again, from `pack_whole`.

    Raises:
        JournalError: A newer sipnap wrote it, or nothing like sipnap did.
    """
    if not packed:
        raise JournalError("a nap is damaged: it is empty")
    key_start = 1 + packed[0]
    start = key_start + _KEY_BYTES
    front_end_id = packed[1:key_start].decode("ascii", "replace")
    return unpack(front_end_id, packed[key_start:start], packed[start:])


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
        key = NapKey.unpack(packed_key)
    except (struct.error, ValueError) as error:
        raise JournalError(f"a nap of front end {front_end_id!r} is damaged: {error}") from error
    return Entry(
        sequence, front_end_id, *key, texts[0], accepted_ns, due_ns, deadline_ns, texts[1], texts[2], packed[offset:]
    )  # fmt: skip
