"""KEMI script of the benchmarks: each call naps in the async module, then gets 404."""

from __future__ import annotations

from typing import Any

import KSR


class Script:
    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: Any) -> int:
        if KSR.is_ACK():
            KSR.tm.t_check_trans()
            return 1
        if KSR.is_OPTIONS():
            KSR.sl.send_reply(200, "Alive")
            return 1
        if KSR.pv.get("$rU") == "probe":  # one of the few calls whose lateness is measured
            KSR.pv.sets("$avp(before)", KSR.pv.get("$TV(Sn)"))
        naps = getattr(KSR, "async")  # a word of Python: no attribute in its syntax
        if naps.ms_route("ksr_answer", int(KSR.pv.get("$def(NAP_MS)"))) < 0:
            KSR.sl.send_reply(503, "Refused")
        return 1

    def ksr_answer(self, msg: Any, evname: str | None = None) -> int:
        if KSR.pv.get("$rU") == "probe":
            KSR.hdr.append_to_reply(f"X-Napped: {KSR.pv.get('$avp(before)')} {KSR.pv.get('$TV(Sn)')}\r\n")
        KSR.tm.t_reply(404, "Not Found")
        return 1


def mod_init() -> Script:
    return Script()
