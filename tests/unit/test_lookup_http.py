"""HTTP lookups without a network: what is sent, and what is taken from an answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.operations import OperationError, Value
from sipnap.sidecar.lookups.document_path import DocumentPath
from sipnap.sidecar.lookups.http_answer import MOST_VALUE_BYTES, values_of
from sipnap.sidecar.lookups.http_settings import read_templates, template_of_arguments, template_of_table
from sipnap.sidecar.lookups.http_template import HttpRequest, HttpTemplate
from sipnap.sidecar.lookups.template import TemplateError, Values
from sipnap.v1 import suspension_pb2 as pb

URL = "http://h.example/a"
STATE = pb.TransactionState(call_id=b"c@1", source_port=5060)


def _template(**table: Any) -> HttpTemplate:
    return template_of_table("t", {"url": URL} | table)


def _request(template: HttpTemplate, **arguments: Value) -> HttpRequest:
    return template.request(Values(arguments, STATE))


def test_a_json_body_is_built_of_values() -> None:
    template = _template(
        json={
            "number": "{number}", "all": ["{list}", 1, 2.5, True], "braces": "{{x}}",
            "in": {"text": "{number} from {state.call_id}", "port": "{state.source_port}"},
        }
    )  # fmt: skip
    request = _request(template, number=b'","x":"\xff', list=[1, b"a", True])
    assert request.method == "POST"
    assert request.headers == {"Content-Type": "application/json"}
    assert json.loads(request.body or b"") == {
        "number": '","x":"�', "all": [[1, "a", True], 1, 2.5, True],
        "in": {"text": '","x":"� from c@1', "port": 5060}, "braces": "{x}",
    }  # fmt: skip


@given(st.binary(max_size=30), st.text(max_size=10))
def test_no_value_leaves_its_field_of_a_form_or_of_json(value: bytes, text: str) -> None:
    form = _request(_template(form={"a&=": "x{v}y", "b": "{w}"}), v=value, w=text)
    assert form.headers == {"Content-Type": "application/x-www-form-urlencoded"}
    pairs = parse_qsl(
        (form.body or b"").decode(), keep_blank_values=True, strict_parsing=True, errors="surrogateescape"
    )
    assert [(name, item.encode("utf-8", "surrogateescape")) for name, item in pairs] == [
        ("a&=", b"x" + value + b"y"), ("b", text.encode()),
    ]  # fmt: skip
    document = _request(_template(json={"v": "{v}", "w": "{w}"}), v=value, w=text)
    assert json.loads(document.body or b"") == {"v": value.decode(errors="replace"), "w": text}


def test_a_header_takes_text_and_no_control_characters() -> None:
    template = _template(headers={"X-Id": "id {id}", "Content-Type": "application/vnd.x+json"}, json={"a": 1})
    assert _request(template, id="ü\t1".encode()).headers == {
        "X-Id": "id ü\t1",
        "Content-Type": "application/vnd.x+json",
    }
    for hostile in (b"a\r\nX: y", b"a\nb", b"\x00", b"\x7f"):
        with pytest.raises(OperationError, match="control characters"):
            _request(template, id=hostile)


def test_the_places_of_a_template_are_known() -> None:
    template = _template(url="http://h/{a}?b={b}", headers={"X": "{c}"}, json=[{"d": "{d} {state.to}"}])
    assert template.places == {"a", "b", "c", "d", "state.to"}
    assert _template(form={"x": "{e}"}).places == {"e"}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"url": "http://{x}/"}, "url: "),
        ({"url": 1}, "url: 1 is no text"),
        ({"metod": "GET"}, "metod is no setting"),
        ({"method": "get"}, "method: 'get' is none of"),
        ({"json": {}, "form": {}}, "two bodies"),
        ({"headers": {"Host": "x"}}, "Host is not yours"),
        ({"headers": {"Transfer-Encoding": "x"}}, "not yours"),
        ({"headers": {"X": "{", }}, "brace"),
        ({"headers": {"X": "a", "x": "b"}}, "twice"),
        ({"headers": {"X Y": "a"}}, "no name of a header"),
        ({"json": {"when": datetime(2026, 1, 1, tzinfo=UTC)}}, "nothing that JSON has"),
        ({"form": {"a": 1}}, "no text"),
        ({"pick": {"a b": "x"}}, "no name for a value"),
        ({"pick": {"a": "x..y"}}, "no path"),
        ({"pick": ["a"]}, "no table"),
        ({"required": ["a"]}, "in neither"),
        ({"required": "a"}, "no list"),
        ({"answer_headers": {"a": "b c"}}, "no name of a header"),
        ({"body": "yes"}, "neither true nor false"),
        ({"ok_status": [99]}, "no status"),
        ({"ok_status": ["9xx"]}, "no status"),
        ({"total_seconds": 0}, "seconds"),
        ({"total_seconds": True}, "seconds"),
        ({"connect_seconds": 1e9}, "seconds"),
        ({"max_bytes": 1 << 30}, "within"),
        ({"max_redirects": 11}, "within"),
        ({"max_redirects": 1, "method": "POST"}, "not sent again"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(table: dict[str, Any], says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        _template(**table)


def test_templates_come_from_a_file_and_errors_name_it(tmp_path: Path) -> None:
    path = tmp_path / "templates.toml"
    path.write_text(f'[one]\nurl = "{URL}/{{n}}"\npick = {{ x = "a[0].b" }}\nrequired = ["x"]\n[two]\nurl = "{URL}"\n')
    assert read_templates(path).keys() == {"one", "two"}
    for text, says in (
        ("x = 1", r"\[x\]: expected a table"),
        ('[one]\nurl = "nothing"', r"\[one\]: url: "),
        ("[one]\n", r"\[one\]: url is missing"),
        ("[", "not TOML"),
        ('["a b"]\nurl = "http://h/"', r"\[a b\]: "),
    ):
        path.write_text(text)
        with pytest.raises(TemplateError, match=says) as raised:
            read_templates(path)
        assert str(path) in str(raised.value)
    with pytest.raises(TemplateError, match="cannot be read: No such file"):
        read_templates(tmp_path / "none.toml")


def test_arguments_make_a_template_without_their_values_being_read_as_one() -> None:
    template, given = template_of_arguments(
        {
            "url": b"http://h/{who}?a=1", "method": b"put", "who": b"{x}", "header_x_tag": b"{y}", "query_q": b"{z}&b",
            "json_deep": b"{state.to}", "json_n": 4, "pick_v": b"a.b", "ok_status": b"200,4xx",
        }
    )  # fmt: skip
    request = _request(template, **given)
    assert request == HttpRequest(
        "PUT", "http://h:80/%7Bx%7D?a=1&q=%7Bz%7D%26b",
        {"x-tag": "{y}", "Content-Type": "application/json"}, b'{"deep":"{state.to}","n":4}',
    )  # fmt: skip
    assert given.keys() == template.places
    assert template.pick == (("v", DocumentPath.parse("a.b")),)
    assert template.ok_status == frozenset((200, *range(400, 500)))
    assert template_of_arguments({"url": b"http://h/", "form_a": b"1"})[0].method == "POST"
    assert template_of_arguments({"url": b"http://h/"})[0].method == "GET"


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": b"http://{h}/"}, {"url": b"\xff"}, {"url": [b"a"]}, {"url": b"http://h/", "method": b"CONNECT"},
        {"url": b"http://h/", "header_host": b"x"}, {"url": b"http://h/", "json_a": b"1", "form_a": b"1"},
        {"url": b"http://h/", "pick_a": b".."}, {"url": b"http://h/", "pick_a": [b"a"]},
        {"url": b"http://h/", "ok_status": b"ok"},
    ],
)  # fmt: skip
def test_arguments_that_make_no_request(arguments: dict[str, Value]) -> None:
    with pytest.raises(OperationError) as raised:
        template_of_arguments(arguments)
    assert raised.value.code == "http_bad_template"


DOCUMENT = json.loads(
    '{"data": {"routes": [{"uri": "sip:a", "w": 1}, {"uri": "sip:b", "w": 2.5}, {"w": null}]}, "ok": true,'
    ' "n": null, "big": 99999999999999999999, "odd key": {"a.b": "x"}, "u": "ü\\ud800", "empty": [],'
    ' "mixed": [1, null, {"a": [1]}]}'
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.routes[0].uri", b"sip:a"),
        ("data.routes[1].w", b"2.5"),
        ("data.routes[*].uri", [b"sip:a", b"sip:b"]),
        ("data.routes[*].w", [1, b"2.5"]),
        ("data.routes[0]", b'{"uri":"sip:a","w":1}'),
        ("data.routes[7].uri", None),
        ("data.routes.uri", None),
        ("data[0]", None),
        ("ok", True),
        ("n", None),
        ("big", b"99999999999999999999"),
        ('["odd key"]["a.b"]', b"x"),
        ("u", "ü?".encode()),
        ("empty", None),
        ("mixed", [1, b'{"a":[1]}']),
        ("nothing", None),
    ],
)
def test_paths_pick_values(path: str, value: Value | None) -> None:
    assert DocumentPath.parse(path).of(DOCUMENT) == value


def test_a_path_may_begin_with_a_place_in_a_list() -> None:
    assert DocumentPath.parse("[1].a").of([{}, {"a": 1}]) == 1
    assert DocumentPath.parse("[*]").of([1, 2]) == [1, 2]


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a[-1]", "a]b", "a.[0]", "a b", "[0]a", '["a]']
)
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match="no path"):
        DocumentPath.parse(text)


def _values(template: HttpTemplate, status: int = 200, body: bytes = b"", **headers: str) -> dict[str, Value]:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return values_of(template, status, fields, body)


def _refused(template: HttpTemplate, status: int = 200, body: bytes = b"", **headers: str) -> OperationError:
    with pytest.raises(OperationError) as raised:
        _values(template, status, body, **headers)
    return raised.value


def test_without_pick_the_body_is_a_value_and_with_it_only_if_asked_for() -> None:
    assert _values(_template(), 404, b"no") == {"status": 404, "body": b"no"}
    assert _values(_template(pick={"a": "x"}), body=b'{"x": 1}') == {"status": 200, "a": 1}
    assert _values(_template(pick={"a": "x"}, body=True), body=b"{}") == {"status": 200, "body": b"{}"}
    assert _values(_template(body=False), body=b"x") == {"status": 200}


def test_headers_of_the_answer_are_values_whatever_their_case() -> None:
    template = _template(answer_headers={"ttl": "X-Ttl", "no": "X-No"}, body=False)
    assert _values(template, X_TTL="5", x_ttl="6") == {"status": 200, "ttl": b"5"}


def test_an_error_page_need_not_be_json_but_a_good_answer_has_to() -> None:
    template = _template(pick={"a": "x"}, required=["a"])
    assert _values(template, 404, b"<html>") == {"status": 404}
    assert _values(template, 404, b'{"x": 1}') == {"status": 404, "a": 1}
    assert _refused(template, 200, b"<html>").code == "http_bad_json"
    assert _refused(template, 200, b"{}").code == "http_missing_value"
    assert _refused(template, 200, b'{"x": null}').code == "http_missing_value"
    strict = _template(pick={"a": "x"}, ok_status=[404])
    assert _refused(strict, 404, b"<html>").code == "http_bad_json"


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"x":' * 20_000, b"9" * 5000, b"\xff", b"", b"{} {}", b'{"x": 1', b"\x00\x00"]
)
def test_hostile_json_is_an_error_like_any_other(body: bytes) -> None:
    assert _refused(_template(pick={"a": "x"}), 200, body).code == "http_bad_json"


def test_only_statuses_that_may_pass_are_tried_again_and_the_server_says_when() -> None:
    template = _template(ok_status=[200, "3xx"])
    assert _values(template, 302)["status"] == 302
    for status, again in ((503, 0.2), (429, 0.2), (500, 0.2), (404, None), (400, None), (501, None)):
        refused = _refused(template, status)
        assert (refused.code, refused.retry_after_seconds) == ("http_status", again)
    assert _refused(template, 503, Retry_After="3").retry_after_seconds == 3
    assert _refused(template, 429, retry_after="99999999999999999999").retry_after_seconds == 30
    assert _refused(template, 503, Retry_After="soon").retry_after_seconds == 0.2
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    assert 5 < (_refused(template, 503, Retry_After=soon).retry_after_seconds or 0) <= 10
    assert _refused(template, 503, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT").retry_after_seconds == 0


def test_values_have_to_fit_into_a_continue() -> None:
    assert _refused(_template(), 200, b"x" * (MOST_VALUE_BYTES + 1)).code == "http_too_large"
    picked = _refused(_template(pick={"a": "[*]"}), 200, json.dumps(["y" * 1000] * 60).encode())
    assert picked.code == "http_too_large"
