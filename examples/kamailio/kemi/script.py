"""A KEMI script whose calls nap for 4 s before they are relayed. Runs inside Kamailio."""

from __future__ import annotations

from typing import Any

import KSR
import sipnap_kemi  # written by `sipnap shim kamailio --write-config`


def mod_init() -> Script:
    return Script()


class Script:
    def __init__(self) -> None:
        self.nap = sipnap_kemi.Nap(self)

    def child_init(self, rank: int) -> int:
        return 0

    # app_python3 looks for both whenever something is sent or answered; without them an exception stays pending.
    def ksr_reply_route(self, msg: Any) -> int:
        return 1

    def ksr_onsend_route(self, msg: Any) -> int:
        return 1

    def ksr_request_route(self, msg: Any) -> int:
        if self.nap.handle():  # it came from the shim, and is done
            return 1
        if KSR.is_CANCEL():
            if KSR.tm.t_check_trans() > 0:
                KSR.tm.t_relay()
            return 1
        if KSR.siputils.has_totag() > 0:
            if KSR.rr.loose_route() > 0 or (KSR.is_ACK() and KSR.tm.t_check_trans() > 0):
                KSR.tm.t_relay()
            elif not KSR.is_ACK():
                KSR.sl.sl_send_reply(404, "Not Here")
            return 1
        if KSR.is_OPTIONS():
            KSR.sl.sl_send_reply(200, "Alive")
            return 1
        if not KSR.is_INVITE():
            KSR.sl.sl_send_reply(405, "Method Not Allowed")
            return 1

        KSR.rr.record_route()
        KSR.pvx.avp_sets("customer", KSR.pv.gete("$fU"))
        if self.nap.async_route("ksr_route_resume", 4):  # suspended
            return 1
        return self.to_customer()  # refused at the door: go on at once

    def ksr_route_resume(self, msg: Any, evname: str | None = None) -> int:
        status = KSR.pvx.avp_gete("sipnap_status")
        if status != "ok":
            KSR.warn(f"the nap ended as {status}: {KSR.pvx.avp_gete('sipnap_error')}\n")
        return self.to_customer()

    def to_customer(self) -> int:
        if KSR.pv.gete("$rU") == "nobody":
            if KSR.pv.get("$T(id_index)") is not None:
                KSR.tm.t_reply(404, "Nobody Here")
            else:
                KSR.sl.sl_send_reply(404, "Nobody Here")
            return 1
        KSR.tm.t_on_failure("ksr_failure_busy")
        KSR.pv.sets("$du", "sip:127.0.0.1:5080")
        if KSR.tm.t_relay() < 0:
            KSR.sl.sl_reply_error()
        return 1

    def ksr_failure_busy(self, msg: Any) -> int:
        if KSR.tm.t_is_canceled() < 0 and KSR.tm.t_check_status("486|408") > 0:
            KSR.tm.t_reply(480, "Try Later")
        return 1
