"""Tables for terminals: aligned columns of text that cannot steer the terminal, whatever SIP put into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from sipnap.client.logs import escaped

_GAP = "  "


def shown(value: bytes | str) -> str:
    """A value from SIP, fit for a terminal: what is not UTF-8 or not printable appears as a backslash escape."""
    return escaped(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value)


def duration_text(duration_seconds: float) -> str:
    """A duration for people, in at most two units: ``0.25 s``, ``41 s``, ``3 min 20 s``, ``2 d 4 h``."""
    if duration_seconds < 10:
        return f"{duration_seconds:.2f} s"
    rest = round(duration_seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (next_name, next_size) in pairwise(units):
        if rest >= size:
            return f"{rest // size} {name} {rest % size // next_size} {next_name}"
    return f"{rest} s"


class Columns:
    """Rows under headings, printed one at a time with widths that were fixed before the first.

    So that a list of a million rows needs no memory and its first rows appear at once.
    """

    def __init__(self, headings: Sequence[str], widths: Sequence[int]) -> None:
        """Least widths, one for each heading; a longer cell pushes the rest of its row to the right."""
        self._headings = headings
        self._widths = [max(width, len(heading)) for heading, width in zip(headings, widths, strict=True)]

    def heading(self) -> str:
        """The row of headings."""
        return self.row(self._headings)

    def row(self, cells: Sequence[str]) -> str:
        """One row, without trailing spaces."""
        return _GAP.join(f"{cell:<{width}}" for cell, width in zip(cells, self._widths, strict=True)).rstrip()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """The lines of a small table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    columns = Columns(headings, widths)
    yield indent + columns.heading()
    for row in rows:
        yield indent + columns.row(row)
