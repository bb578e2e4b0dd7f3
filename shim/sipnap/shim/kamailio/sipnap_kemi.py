"""Naps for Kamailio scripts in Python (KEMI, app_python3). One file, standard library only; runs inside the proxy.

The configuration defines SIPNAP_KEMI and includes sipnap.cfg, which holds all settings and the work to be done::

    #!define SIPNAP_KEMI
    include_file "sipnap.cfg"

and the script makes one Nap and asks it first::

    import KSR
    import sipnap_kemi

    def mod_init():
        return Script()

    class Script:
        def __init__(self):
            self.nap = sipnap_kemi.Nap(self)

        def child_init(self, rank):
            return 0

        def ksr_request_route(self, msg):
            if self.nap.handle():                             # it came from the shim, and is done
                return 1
            if self.nap.async_route("ksr_route_resume", 4):   # suspended: the method named goes on
                return 1
            KSR.sl.sl_send_reply(503, "Unavailable")          # refused at the door: go on without
            return 1

        def ksr_route_resume(self, msg, evname=None):
            status = KSR.pvx.avp_get("sipnap_status")         # ok, failed, timed_out or lost
            KSR.tm.t_reply(404, "Not Found")
            return 1

With an operation that runs meanwhile, and what it has found::

            if self.nap.async_task_route("ksr_route_resume", operation="http", args={"number": fetch("rU")}):
                return 1

        def ksr_route_resume(self, msg, evname=None):
            gateway = self.nap.values().get("gateway", "")
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import KSR

MOST_OPERATIONS = 4
"""How many operations one nap can have."""

_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_ARGUMENT = re.compile(r"[A-Za-z0-9_]{1,64}\Z")


class Operation(NamedTuple):
    """What is to be done while a request naps."""

    name: str
    """Name under which the sidecar knows it."""
    args: Mapping[str, str | bytes | int] | None = None
    """What it is given; all of it arrives as text, True and False as 1 and 0."""
    group: str = ""
    """Worker group that runs it; empty: the default one."""


def fetch(name: str) -> bytes:
    """The value of a pseudo-variable, byte for byte, where ``KSR.pv.get`` raises for what is not UTF-8.

    Args:
        name: What is after the dollar sign: ``rU``, ``hdr(X-Tenant)``, ``avp(nap_gateway)``.

    Returns:
        Empty if it has no value.
    """
    return base64.b64decode(KSR.pv.gete(f"$({name}{{s.encode.base64}})"))


class Nap:
    """Naps for the methods of one script object."""

    def __init__(self, handler: Any) -> None:
        """Install the callbacks that resume, ``sipnap_resumed`` and ``sipnap_backstop``, on the script object.

        Args:
            handler: The object that ``mod_init`` returns.
        """
        self._handler = handler
        self._port = 0  # SIPNAP_PORT; to be read when there is a message at hand
        handler.sipnap_resumed = self._resumed
        handler.sipnap_backstop = self._backstop

    def handle(self, msg: Any = None) -> bool:
        """Take what comes from the shim; tell the shim of CANCELs. The first thing to do in ``ksr_request_route``.

        Args:
            msg: The message, which the method of a task is called with.

        Returns:
            True: it came from the shim, and is done: return. False: it is the script's.
        """
        if not self._port:
            self._port = int(KSR.pv.get("$def(SIPNAP_PORT)"))
            KSR.pvx.var_seti("sipnap_batch", int(KSR.pv.gete("$def(SIPNAP_BATCH)") or 1))  # heartbeats are told
        if not KSR.is_dst_port(self._port):
            if KSR.is_CANCEL():
                KSR.route("SIPNAP_CANCELLED")
            return False
        # 0: the native route has ended the script, as for a stranger or after a heartbeat.
        if (read := KSR.route("SIPNAP_READ")) != 0:
            more = KSR.pvx.var_get("sipnap_more") if read > 0 else 0
            if more == 2:
                self._run_task(msg)
                return True
            if more == 3:
                self._continue_batch()
                return True
            if read > 0:
                if more and (route := KSR.pvx.var_get("sipnap_to")) and not self._has(route):
                    KSR.route("SIPNAP_NO_ROUTE")
                self._continue(KSR.pv.get("$rU"))
            KSR.route("SIPNAP_ANSWER")
        return True

    def async_route(self, name: str, seconds: float, failure_route: str = "", fr_ms: int = 0) -> bool:
        """Suspend the transaction and have the method `name` called after so many seconds; see `async_ms_route`."""
        return self.async_ms_route(name, round(seconds * 1000), failure_route, fr_ms)

    def async_ms_route(self, name: str, milliseconds: int, failure_route: str = "", fr_ms: int = 0) -> bool:
        """Suspend the transaction and have the method `name` of the script object called later, with the message.

        Args:
            name: Method to resume in.
            milliseconds: How long to nap, from 1 to SIPNAP_MAX_MS.
            failure_route: The method that ``KSR.tm.t_on_failure`` had armed, if any: it is armed again after the nap.
            fr_ms: What ``KSR.tm.t_set_fr`` had set as the final response timer, if it had.

        Returns:
            True: suspended, the script has to return. False: refused, nothing was done, the script goes on.
        """
        return self._suspend(name, milliseconds, (), failure_route, fr_ms)

    def async_task_route(
        self,
        name: str,
        *,
        operation: str | Sequence[Operation],
        args: Mapping[str, str | bytes | int] | None = None,
        group: str = "",
        ms: int = 5000,
        failure_route: str = "",
        fr_ms: int = 0,
    ) -> bool:
        """Suspend the transaction and have the method `name` called with what an operation has found; see `values`.

        Args:
            name: Method to resume in, as soon as all operations have ended.
            operation: Name of the operation; or up to 4 of them, which run at the same time. The values of the second
                one have names that begin with ``2_``, and so on.
            args: What a single operation is given; see `Operation`.
            group: Worker group of a single operation; empty: the default one.
            ms: The most that they may take, from 1 to SIPNAP_MAX_MS; then the status is ``timed_out``.
            failure_route: As in `async_ms_route`.
            fr_ms: As in `async_ms_route`.

        Returns:
            True: suspended, the script has to return. False: refused, nothing was done, the script goes on.
        """
        operations = [Operation(operation, args, group)] if isinstance(operation, str) else operation
        try:
            asked = [
                (_word(asks.name), _encoded(asks.args or {}), asks.group and _word(asks.group)) for asks in operations
            ]
            if not 1 <= len(asked) <= MOST_OPERATIONS:
                raise ValueError(f"{len(asked)} operations, from 1 to {MOST_OPERATIONS} are possible")
        except (AttributeError, TypeError, ValueError) as error:
            _log(f"nap refused: {error}")
            return False
        return self._suspend(name, ms, asked, failure_route, fr_ms)

    def async_task_data(self, name: str, data: str | bytes, *, group: str = "", ms: int = 0) -> bool:
        """Have the method `name` called later with some data, without a transaction. Suspends nothing.

        There is no request then to answer or to relay; `data` returns what was given here, and
        ``$avp(sipnap_status)`` is ``ok``, or says that the group had no worker for it.

        Args:
            name: Method to call, with the message of the proxy's own making that brought the task.
            data: What it is given, at most 36,000 bytes.
            group: Call it when this worker group has a worker free; empty: at once.
            ms: Not before so many milliseconds; with a group: the longest that it waits for a worker (0: 30 s).

        Returns:
            True: handed over. False: refused, nothing was done.
        """
        if not self._has(name):
            _log(f"task refused: the script object lacks a method: {name[:64]!r}")
            return False
        try:
            group = group and _word(group)
        except (TypeError, ValueError) as error:
            _log(f"task refused: {error}")
            return False
        KSR.pvx.var_sets("sipnap_route", name)
        KSR.pvx.var_sets("sipnap_data", base64.b64encode(_bytes(data)).decode())
        KSR.pvx.var_sets("sipnap_group", group)
        KSR.pvx.var_seti("sipnap_task_ms", ms)
        return bool(KSR.route("SIPNAP_SEND_ENCODED_TASK") > 0)

    def values(self) -> dict[str, str | int | bool | list[str | int | bool]]:
        """What the operations of the nap that has just ended have found, by name.

        In text, what is not UTF-8 is replaced by U+FFFD; ``fetch("avp(nap_NAME)")`` has its bytes.
        """
        found: dict[str, str | int | bool | list[str | int | bool]] = {}
        for entry in filter(None, KSR.pvx.avp_gete("sipnap_names").split(";")):
            name, _, kinds = entry.partition(":")
            KSR.pvx.var_sets("sipnap_name", f"nap_{name}")
            items = [_value(index, kind) for index, kind in enumerate(kinds.removeprefix("l"))]
            found[name] = items if kinds.startswith("l") else items[0]
        return found

    def data(self) -> bytes:
        """What a task was given."""
        return fetch("avp(sipnap_data)")

    def _suspend(
        self, name: str, ms: int, asked: Sequence[tuple[str, str, str]], failure_route: str, fr_ms: int
    ) -> bool:
        if not self._has(name) or (failure_route and not self._has(failure_route)):
            _log(f"nap refused: the script object lacks a method: {name[:64]!r} {failure_route[:64]!r}")
            return False
        KSR.pvx.var_sets("sipnap_route", name)
        KSR.pvx.var_seti("sipnap_ms", ms)
        KSR.pvx.var_sets("sipnap_failure_route", failure_route)
        KSR.pvx.var_seti("sipnap_fr_ms", fr_ms)
        for number, (operation, args, group) in enumerate(asked, start=1):
            suffix = str(number) if number > 1 else ""
            KSR.pvx.var_sets(f"sipnap_operation{suffix}", operation)
            KSR.pvx.var_sets(f"sipnap_args{suffix}", args)
            KSR.pvx.var_sets(f"sipnap_group{suffix}", group)
        if KSR.route("SIPNAP_DOOR") < 0:
            return False
        KSR.tm.t_on_failure("sipnap_backstop")
        went = KSR.route("SIPNAP_GO")
        if went == -1:
            KSR.tm.t_on_failure(failure_route)
            return False
        if went == -2:
            KSR.tmx.t_continue(KSR.pv.get("$T(id_index)"), _signed(KSR.pv.get("$T(id_label)")), "sipnap_resumed")
        return True

    def _run_task(self, msg: Any) -> None:
        route = KSR.pvx.var_get("sipnap_to")
        is_first = KSR.route("SIPNAP_TAKE_TASK" if self._has(route) else "SIPNAP_NO_TASK_ROUTE") == 1
        KSR.route("SIPNAP_ANSWER")  # first: an exception in the method must not have it come again
        if is_first:
            getattr(self._handler, route)(msg)

    def _continue_batch(self) -> None:
        results = ""
        for one in KSR.pv.get("$rU").split("/"):
            KSR.pvx.var_sets("sipnap_one", one)
            KSR.route("SIPNAP_READ_ONE")
            self._continue(one)
            results += f" {KSR.pvx.var_get('sipnap_result')}"
        KSR.pvx.var_sets("sipnap_results", results)
        KSR.route("SIPNAP_ANSWER_BATCH")

    def _continue(self, name: str) -> None:
        words = name.split(".")
        try:
            index, label = int(words[0]), int(words[1])
        except ValueError:
            return
        if -(2**31) <= index < 2**31 and -(2**31) <= label < 2**31:  # KEMI's integers; others raise in the interpreter
            KSR.tmx.t_continue(index, label, "sipnap_resumed")

    def _resumed(self, msg: Any, evname: str | None = None) -> int:
        return self._resume(msg) if KSR.route("SIPNAP_TAKE") > 0 else 1

    def _backstop(self, msg: Any, evname: str | None = None) -> int:
        if KSR.tm.t_is_canceled() > 0:
            return 1
        KSR.route("SIPNAP_LOST")
        return self._resume(msg)

    def _resume(self, msg: Any) -> int:
        failure_route = KSR.pvx.avp_gete("sipnap_arm")
        KSR.tm.t_on_failure(failure_route)
        if failure_route:
            KSR.pvx.avp_rm("sipnap_arm")
        result = getattr(self._handler, KSR.pvx.avp_gete("sipnap_route"))(msg)
        return result if isinstance(result, int) else 1

    def _has(self, name: str) -> bool:
        return callable(getattr(self._handler, name, None))


def _signed(number: int) -> int:
    """A 32-bit number as KEMI takes it."""
    return number - 2**32 if number >= 2**31 else number


def _log(text: str) -> None:
    KSR.err(f"sipnap: {text}\n")


def _bytes(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _word(text: str) -> str:
    if not _WORD.match(text):
        raise ValueError(f"{text[:64]!r} is no name: expected 1 to 64 of [A-Za-z0-9_.:-]")
    return text


def _encoded(args: Mapping[str, str | bytes | int]) -> str:
    """Arguments as the shim reads them."""
    pairs = []
    for name, value in args.items():
        if not _ARGUMENT.match(name):
            raise ValueError(f"{name[:64]!r} is no name of an argument: expected 1 to 64 of [A-Za-z0-9_]")
        if not isinstance(value, str | bytes | int):
            raise TypeError(f"argument {name} is a {type(value).__name__}, expected text or an integer")
        text = str(int(value)) if isinstance(value, int) else value
        pairs.append(f"{name}={quote_from_bytes(_bytes(text), safe='')}")
    return "&".join(pairs)


def _value(index: int, kind: str) -> str | int | bool:
    """One value of the AVP whose name is in ``$var(sipnap_name)``; always by the same name, which Kamailio caches."""
    KSR.pvx.var_seti("sipnap_i", index)
    text = base64.b64decode(KSR.pv.gete("$(avp($var(sipnap_name))[$var(sipnap_i)]{s.encode.base64})"))
    if kind == "t":
        return text.decode("utf-8", "replace")
    return bool(int(text)) if kind == "b" else int(text)
