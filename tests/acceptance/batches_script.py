"""The script of batches.cfg in Python: a resumed method must not harm those after it. Runs inside Kamailio."""

from __future__ import annotations

import time
from typing import Any

import KSR
import sipnap_kemi


def mod_init() -> Script:
    return Script()


class Script:
    def __init__(self) -> None:
        self.nap = sipnap_kemi.Nap(self)

    def child_init(self, rank: int) -> int:
        return 0

    # app_python3 leaves an exception pending when a nested call finds no such method: scripts that relay need both.
    def ksr_reply_route(self, msg: Any) -> int:
        return 1

    def ksr_onsend_route(self, msg: Any) -> int:
        return 1

    def ksr_request_route(self, msg: Any) -> int:
        if self.nap.handle():
            return 1
        if KSR.is_CANCEL():
            if KSR.tm.t_lookup_cancel() > 0:
                KSR.tm.t_relay()
            return 1
        if KSR.is_ACK():
            KSR.tm.t_check_trans()
            return 1
        if KSR.is_OPTIONS():
            KSR.sl.sl_send_reply(200, "Alive")
            return 1
        KSR.pvx.avp_sets("asked", KSR.pv.gete("$rU"))
        if KSR.pv.gete("$rU") == "own":
            KSR.tm.t_newtran()
            KSR.tmx.t_suspend()
            KSR.notice(f"acceptance: own {KSR.pv.get('$T(id_index)')} {KSR.pv.get('$T(id_label)')}\n")
            return 1
        if not self.nap.async_ms_route("ksr_resume", int(KSR.pv.gete("$hdr(X-Nap-Ms)"))):
            KSR.sl.sl_send_reply(503, "Refused At The Door")
        return 1

    def ksr_resume(self, msg: Any, evname: str | None = None) -> int:
        asked = KSR.pvx.avp_gete("asked")
        if asked == "exit":
            self.ksr_answer(msg)
            KSR.x.exit()
        elif asked == "drop":
            self.ksr_answer(msg)
            KSR.x.drop()
        elif asked == "error":
            raise RuntimeError("as the test wants it")
        elif asked in ("again", "heavy"):
            if asked == "heavy":
                KSR.pvx.avp_sets("ballast", KSR.pv.gete("$hdr(X-Ballast)") * 3)
            if not self.nap.async_ms_route("ksr_answer", 60_000):
                KSR.tm.t_reply(500, "No Second Nap")
        elif asked == "own":
            KSR.tmx.t_suspend()
        elif asked == "refused" and self.nap.async_ms_route("not_there", 60_000):
            return 1
        elif asked == "relay":
            KSR.pv.sets("$du", f"sip:127.0.0.1:{KSR.pv.gete('$hdr(X-Port)')}")
            KSR.tm.t_relay()
        else:
            if asked == "slow":
                time.sleep(0.6)
            self.ksr_answer(msg)
        return 1

    def ksr_answer(self, msg: Any, evname: str | None = None) -> int:
        status, error = KSR.pvx.avp_gete("sipnap_status"), KSR.pvx.avp_gete("sipnap_error") or "none"
        asked, found = KSR.pvx.avp_gete("asked"), KSR.pvx.avp_gete("nap_found")
        if found:
            KSR.hdr.append_to_reply(f"X-Found: {found}\r\n")
        KSR.hdr.append_to_reply(f"X-Status: {status}\r\nX-Error: {error}\r\nX-Asked: {asked}\r\n")
        KSR.tm.t_reply(404, "Resumed")
        return 1
