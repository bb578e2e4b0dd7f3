"""The redirect server of ../lookups.cfg as a KEMI script; kamailio.cfg here loads it. Runs inside Kamailio."""

from __future__ import annotations

import re
from typing import Any

import KSR
import sipnap_kemi  # written by `sipnap shim kamailio --write-config`
from sipnap_kemi import Operation, fetch

SIP_URI = re.compile(r"sips?:[A-Za-z0-9_.!~*'()&=+$,;?/%:@-]+\Z")


def mod_init() -> Script:
    return Script()


class Script:
    def __init__(self) -> None:
        self.nap = sipnap_kemi.Nap(self)

    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: Any) -> int:
        if self.nap.handle(msg):  # it came from the shim, and is done
            return 1
        if KSR.is_CANCEL():
            if KSR.tm.t_check_trans() > 0:
                KSR.tm.t_relay()
            return 1
        if KSR.is_ACK():
            KSR.tm.t_check_trans()
            return 1
        if KSR.is_OPTIONS():
            KSR.sl.sl_send_reply(200, "Alive")
            return 1
        if not KSR.is_INVITE():
            KSR.sl.sl_send_reply(405, "Method Not Allowed")
            return 1

        number = fetch("rU")  # bytes: it may be anything
        operations = [
            Operation("http", {"template": "route", "number": number}, "lookups"),
            Operation("enum", {"number": number}, "lookups"),
        ]
        if not self.nap.async_task_route("ksr_route_routed", operation=operations, ms=3000):
            KSR.sl.sl_send_reply(503, "No Lookups Now")
        return 1

    def ksr_route_routed(self, msg: Any, evname: str | None = None) -> int:
        status = KSR.pvx.avp_gete("sipnap_status")
        if status != "ok":
            KSR.warn(f"{status}, {KSR.pvx.avp_gete('sipnap_error_code')}: {KSR.pvx.avp_gete('sipnap_error')}\n")
        found = self.nap.values()
        contact = str(found.get("contact", "")) if found.get("decision") == 302 else ""
        contact = contact or str(found.get("2_uri", ""))
        self.nap.async_task_data("ksr_route_report", fetch("ci") + b" " + contact.encode(), group="reports")
        if SIP_URI.match(contact):  # a URI that somebody else's server has said: what is none does not go into a header
            KSR.hdr.append_to_reply(f"Contact: <{contact}>\r\n")
            KSR.tm.t_reply(302, "Moved Temporarily")
        else:
            KSR.tm.t_reply(404, "Not Found")
        return 1

    def ksr_route_report(self, msg: Any) -> int:
        KSR.notice(f"routed: {self.nap.data().decode('utf-8', 'replace')}\n")
        return 1
