"""Operations that load in a sidecar and not in its worker processes."""

import sys

if "--with-parent" in sys.argv:
    raise ImportError("a library is missing")

OPERATIONS: dict[str, object] = {}
