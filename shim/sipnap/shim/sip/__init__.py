"""The Python SIP front end: a UAS and redirect server whose routes are coroutines that can nap.

A routes file needs what is exported here and nothing else; `sipnap shim sip --routes FILE.py` runs it.
"""

from sipnap.client.operations import operation_message
from sipnap.shim.sip.app import App
from sipnap.shim.sip.call import Call
from sipnap.shim.sip.result import OperationFailed, OperationResult
from sipnap.shim.sip.task import Task

__all__ = ["App", "Call", "OperationFailed", "OperationResult", "Task", "operation_message"]
