"""What becomes of an HTTP answer: its body, bounded also when it is compressed, and the values that are asked for."""

from __future__ import annotations

import email.utils
import json
import time
import zlib
from collections.abc import Mapping, Sequence

import aiohttp

from sipnap.client.operations import OperationError, Value
from sipnap.sidecar.lookups.document_path import Json
from sipnap.sidecar.lookups.http_template import HttpTemplate

MOST_VALUE_BYTES = 16 << 10
"""What all values of one answer may be together: the proxy gets them in one datagram."""

MOST_RETRY_AFTER_SECONDS = 30.0
"""A server that asks to be left alone for longer is asked again after this, if the policy has an attempt left."""

RETRY_SECONDS = 0.2
"""Pause before the next attempt when the server says nothing about it."""

_RETRIED_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))


async def read_body(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The body, decompressed, if it is not too large.

    Raises:
        OperationError: It is, or it is compressed in a way that is not known.
        aiohttp.ClientError: The connection failed.
    """
    if response.method != "HEAD" and (response.content_length or 0) > most_bytes:
        raise _too_large(most_bytes)
    match response.headers.get("Content-Encoding", "identity").strip().lower():
        case "identity" | "":
            decompressor = None
        case "gzip" | "x-gzip" | "deflate":
            decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)
        case coding:
            raise OperationError(
                "http_bad_answer", f"the answer is compressed as {coding[:32]!r}: nobody asked for that"
            )
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += _decompressed(decompressor, chunk, most_bytes + 1 - len(body)) if decompressor else chunk
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    if body and decompressor is not None and (not decompressor.eof or decompressor.unused_data):
        raise OperationError("http_bad_answer", "the compressed answer does not end where it should")
    return bytes(body)


def values_of(
    template: HttpTemplate, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> dict[str, Value]:
    """The values that the template asks for.

    Raises:
        OperationError: The status is none of those wanted, a required value is missing, or they are too large.
    """
    if template.ok_status is not None and status not in template.ok_status:
        raise OperationError(
            "http_status", f"the status is {status}", retry_after_seconds=_retry_after_seconds(status, headers)
        )
    # What is not asked for cannot be wrong: an error page need not be JSON.
    is_good = 200 <= status <= 299 or template.ok_status is not None
    values: dict[str, Value] = {"status": status}
    fields = {name.decode("latin-1").lower(): value for name, value in reversed(headers)}
    values.update({name: fields[header] for name, header in template.answer_headers if header in fields})
    if template.pick:
        values.update(_picked(template, body, is_strict=is_good))
    if template.body:
        values["body"] = body
    if is_good and (missing := template.required - values.keys()):
        raise OperationError("http_missing_value", f"the answer has no {', '.join(sorted(missing))}")
    if sum(map(_size, values.values())) > MOST_VALUE_BYTES:
        raise OperationError("http_too_large", f"the values are more than {MOST_VALUE_BYTES} bytes: pick fewer of them")
    return values


def _picked(template: HttpTemplate, body: bytes, *, is_strict: bool) -> Mapping[str, Value]:
    try:
        document: Json = json.loads(body)
        found = {name: path.of(document) for name, path in template.pick}
    except (ValueError, RecursionError) as error:
        if is_strict:
            raise OperationError("http_bad_json", f"the answer is not JSON: {error}") from None
        return {}
    return {name: value for name, value in found.items() if value is not None}


def _size(value: Value) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, bytes | str) else 8


def _decompressed(decompressor: zlib._Decompress, chunk: bytes, most_bytes: int) -> bytes:
    try:
        return decompressor.decompress(chunk, most_bytes)
    except zlib.error as error:
        raise OperationError("http_bad_answer", f"the answer cannot be decompressed: {error}") from error


def _too_large(most_bytes: int) -> OperationError:
    return OperationError("http_too_large", f"the answer is more than {most_bytes} bytes (setting max_bytes)")


def _retry_after_seconds(status: int, headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """When to ask again (RFC 9110 10.2.3); None: the same request would get the same answer."""
    if status not in _RETRIED_STATUSES:
        return None
    said = next((value for name, value in headers if name.lower() == b"retry-after"), b"").decode("latin-1").strip()
    if said.isascii() and said.isdigit():
        seconds = float(said[:9])
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            seconds = RETRY_SECONDS
    return min(max(seconds, 0.0), MOST_RETRY_AFTER_SECONDS)
