"""The Python SIP front end: a UAS and redirect server whose routes are coroutines that can nap.

A routes file needs `App` and `Call` and nothing else from here; `sipnap shim sip --routes FILE.py` runs it.
"""

from sipnap.shim.sip.app import App
from sipnap.shim.sip.call import Call

__all__ = ["App", "Call"]
