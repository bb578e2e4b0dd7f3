"""The script of kemi.cfg: what a call asks for is its user part; how long it naps, X-Nap-Ms. Runs inside Kamailio."""

from __future__ import annotations

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
        if KSR.siputils.has_totag() > 0:
            return self.within_dialog()
        if KSR.is_ACK():
            KSR.tm.t_check_trans()
            return 1
        user = KSR.pv.gete("$rU")
        if KSR.is_OPTIONS() and not user:
            KSR.sl.sl_send_reply(200, "Alive")
            return 1
        KSR.pv.sets("$avp(tenant)", KSR.pv.gete("$hdr(X-Tenant)"))
        KSR.pvx.avp_sets("asked", user)
        text = KSR.pv.gete("$hdr(X-Nap-Ms)")
        milliseconds = int(text) if text.isdigit() else 0
        route, failure_route = "ksr_route_answer", ""
        if user == "relay":
            KSR.rr.record_route()
            KSR.dialog.dlg_manage()
            KSR.tm.t_on_branch("ksr_branch_mark")
            KSR.tm.t_on_failure("ksr_failure_failover")
            KSR.hdr.append("X-Before-Nap: kept\r\n")
            route, failure_route = "ksr_route_relay", "ksr_failure_failover"
        elif user == "twice":
            route = "ksr_route_again"
        elif user == "armed":
            KSR.tm.t_on_failure("ksr_failure_failover")
        elif user == "nowhere":
            route = "ksr_route_that_is_not_there"
        if user == "seconds":
            suspended = self.nap.async_route(route, milliseconds / 1000)
        else:
            suspended = self.nap.async_ms_route(route, milliseconds, failure_route=failure_route)
        if not suspended:
            KSR.sl.sl_send_reply(503, "Refused At The Door")
        return 1

    def ksr_route_answer(self, msg: Any, evname: str | None = None) -> int:
        return answer(404, "Resumed", KSR.pvx.avp_gete("sipnap_status"))

    def ksr_route_again(self, msg: Any, evname: str | None = None) -> int:
        KSR.pvx.avp_sets("first_status", KSR.pvx.avp_gete("sipnap_status"))
        milliseconds = int(KSR.pv.gete("$hdr(X-Second-Ms)"))
        if not self.nap.async_ms_route("ksr_route_answer_twice", milliseconds):
            KSR.tm.t_reply(500, "No Second Nap")
        return 1

    def ksr_route_answer_twice(self, msg: Any, evname: str | None = None) -> int:
        return answer(404, "Resumed Twice", f"{KSR.pvx.avp_gete('first_status')} {KSR.pvx.avp_gete('sipnap_status')}")

    def ksr_route_relay(self, msg: Any, evname: str | None = None) -> int:
        KSR.pv.sets("$du", f"sip:127.0.0.1:{KSR.pv.gete('$hdr(X-First-Port)')}")
        if KSR.tm.t_relay() < 0:
            KSR.tm.t_reply(500, "Relay")
        return 1

    def ksr_branch_mark(self, msg: Any) -> int:
        KSR.hdr.append("X-Branch-Route: ran\r\n")
        return 1

    def ksr_failure_failover(self, msg: Any) -> int:
        if KSR.tm.t_is_canceled() < 0 and KSR.tm.t_check_status("486") > 0:
            KSR.pv.sets("$du", f"sip:127.0.0.1:{KSR.pv.gete('$hdr(X-Second-Port)')}")
            KSR.tm.t_on_branch("ksr_branch_mark")
            KSR.tm.t_relay()
        return 1

    def within_dialog(self) -> int:
        if KSR.rr.loose_route() > 0:
            KSR.tm.t_relay()
        elif KSR.is_ACK():
            if KSR.tm.t_check_trans() > 0:
                KSR.tm.t_relay()
        else:
            KSR.sl.sl_send_reply(481, "No Dialog")
        return 1


def answer(code: int, reason: str, status: str) -> int:
    error, asked = KSR.pvx.avp_gete("sipnap_error"), KSR.pvx.avp_gete("asked")
    KSR.hdr.append_to_reply(f"X-Status: {status}\r\nX-Error: {error}\r\nX-Asked: {asked}\r\n")
    KSR.tm.t_reply(code, reason)
    return 1
