"""The script of operations_kemi.cfg; it does what operations.cfg does. Runs inside Kamailio."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import KSR
import sipnap_kemi
from sipnap_kemi import Operation, fetch


def mod_init() -> Script:
    return Script()


class Script:
    def __init__(self) -> None:
        self.nap = sipnap_kemi.Nap(self)

    def child_init(self, rank: int) -> int:
        return 0

    def ksr_request_route(self, msg: Any) -> int:
        if self.nap.handle(msg):
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
        user, group, number = KSR.pv.gete("$rU"), KSR.pv.gete("$hdr(X-Group)"), fetch("hdr(X-Number)")
        KSR.pvx.avp_sets("user", user)
        operation, ms = KSR.pv.gete("$hdr(X-Operation)"), int(KSR.pv.gete("$hdr(X-Nap-Ms)"))
        if user == "task":
            handed = self.nap.async_task_data(KSR.pv.gete("$hdr(X-Route)"), number, group=group, ms=ms)
            KSR.sl.sl_send_reply(*((480, "Task") if handed else (503, "Refused At The Door")))
            return 1
        route = "again" if user == "twice" else "answer"
        if user == "plain":
            suspended = self.nap.async_ms_route(route, ms)
        elif user == "several":
            operations = [
                Operation(operation, {"number": number}, group),
                Operation(KSR.pv.gete("$hdr(X-Second)"), {"name": fetch("fn"), "number": number}),
                Operation("fourth", group="g4"),
            ]
            suspended = self.nap.async_task_route(route, operation=operations, ms=ms)
        elif user == "both":
            operations = [
                Operation(operation, {"template": "route", "number": number}, group),
                Operation("enum", {"number": number}, "lookups"),
            ]
            suspended = self.nap.async_task_route(route, operation=operations, ms=ms)
        elif user == "route":
            args = {"template": "route", "number": number}
            suspended = self.nap.async_task_route(route, operation=operation, args=args, group=group, ms=ms)
        else:
            suspended = self.nap.async_task_route(
                route, operation=operation, args={"number": number}, group=group, ms=ms
            )
        if not suspended:
            KSR.sl.sl_send_reply(503, "Refused At The Door")
        return 1

    def answer(self, msg: Any) -> int:
        if KSR.pvx.avp_gete("answers"):
            KSR.err("acceptance: resumed twice\n")
        KSR.pvx.avp_sets("answers", "1")
        avp = KSR.pvx.avp_gete
        values = self.nap.values()
        headers = {
            "X-Status": avp("sipnap_status"),
            "X-Error": avp("sipnap_error"),
            "X-Code": avp("sipnap_error_code"),
            "X-Asked": avp("user"),
            "X-Names": avp("sipnap_names") or "<null>",
            "X-Found": f"of {exactly('found')} {exactly('2_found')} {shown(values, 'count')} {shown(values, 'yes')}",
            "X-Several": "are " + " ".join(encoded(str(item).encode()) for item in listed(values.get("several", []))),
        }
        headers["X-Looked-Up"] = f"{values.get('number', '<null>')} {values.get('2_uri', '<null>')}"
        headers["X-Exactly"] = exactly("number")
        if avp("sipnap_status") == "ok" and "uri" in values and values.get("decision") != 404:
            headers["Contact"] = f"<{values['uri']}>"
        KSR.hdr.append_to_reply("".join(f"{name}: {value}\r\n" for name, value in headers.items()))
        KSR.tm.t_reply(*((302, "Moved Temporarily") if "Contact" in headers else (404, "Resumed")))
        return 1

    def again(self, msg: Any) -> int:
        second = KSR.pv.gete("$hdr(X-Second)")
        if second:
            suspended = self.nap.async_task_route("answer", operation=second, ms=1000)
        else:
            suspended = self.nap.async_ms_route("answer", 1000)
        if not suspended:
            KSR.tm.t_reply(500, "No Second Nap")
        return 1

    def note(self, msg: Any) -> int:
        status, code = KSR.pvx.avp_gete("sipnap_status"), KSR.pvx.avp_gete("sipnap_error_code")
        data, transaction = hashlib.md5(self.nap.data()).hexdigest(), KSR.pv.get("$T(id_index)")
        KSR.err(
            f"acceptance: task [{status}] [{code}] [{data}] in [{'<null>' if transaction is None else transaction}]\n"
        )
        return 1

    def ends(self, msg: Any) -> int:
        self.note(msg)
        if self.nap.async_ms_route("answer", 1000):
            KSR.err("acceptance: a task has suspended something\n")
        raise RuntimeError("acceptance: a task that raises")


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def exactly(name: str) -> str:
    return encoded(fetch(f"avp(nap_{name})")) or "<null>"


def shown(values: dict[str, Any], name: str) -> str:
    """As a native script shows it."""
    return str(int(values[name])) if name in values else "<null>"


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
