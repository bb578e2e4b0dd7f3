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
"""

from __future__ import annotations

from typing import Any

import KSR


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

    def handle(self) -> bool:
        """Take what comes from the shim; tell the shim of CANCELs. The first thing to do in ``ksr_request_route``.

        Returns:
            True: it came from the shim, and is done: return. False: it is the script's.
        """
        if not self._port:
            self._port = int(KSR.pv.get("$def(SIPNAP_PORT)"))
        if not KSR.is_dst_port(self._port):
            if KSR.is_CANCEL():
                KSR.route("SIPNAP_CANCELLED")
            return False
        # 0: the native route has ended the script, as for a stranger.
        if (read := KSR.route("SIPNAP_READ")) != 0:
            if read > 0:
                self._continue()
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
        if not self._has(name) or (failure_route and not self._has(failure_route)):
            KSR.err(f"sipnap: nap refused: the script object lacks a method: {name[:64]!r} {failure_route[:64]!r}\n")
            return False
        KSR.pvx.var_sets("sipnap_route", name)
        KSR.pvx.var_seti("sipnap_ms", milliseconds)
        KSR.pvx.var_sets("sipnap_failure_route", failure_route)
        KSR.pvx.var_seti("sipnap_fr_ms", fr_ms)
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

    def _continue(self) -> None:
        route = KSR.pvx.var_get("sipnap_to")
        if route and not self._has(route):
            KSR.route("SIPNAP_NO_ROUTE")
        words = KSR.pv.get("$rU").split(".")
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
