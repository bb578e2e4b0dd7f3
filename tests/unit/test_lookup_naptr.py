"""NAPTR records: order, services, and what their regular expressions make of a number."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.sidecar.lookups.ere import BadExpression, Budget, Expression, TooCostly
from sipnap.sidecar.lookups.naptr import BadRecord, Naptr, ServiceFilter, name_of, number_of, preferred, uri_of

PLENTY = 10_000_000


def _record(regexp: str, *, order: int = 10, preference: int = 10, flags: str = "u") -> Naptr:
    return Naptr(order, preference, flags, "E2U+sip", regexp.encode("latin-1"), ".")


def _uri(regexp: str, number: str = "+43123") -> str:
    return uri_of(_record(regexp), number, Budget(PLENTY))


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("^.*$", "+43123", ["+43123"]),
        (r"^\+(.*)$", "+43123", ["+43123", "43123"]),
        (r"^\+43(.*)$", "+44123", None),
        ("^+43(.*)$", "+43123", ["+43123", "123"]),
        ("+43", "+43123", ["+43"]),
        ("43", "+43123", ["43"]),
        (r"^\+([0-9]{2})([0-9]+)$", "+43123", ["+43123", "43", "123"]),
        (r"([[:digit:]]{2,3})$", "+43123", ["123", "123"]),
        (r"^\+43?(1|2)(x?)", "+4123", ["+41", "1", ""]),
        ("1|123|12", "+43123", ["123"]),
        ("[^0-9]", "+43123", ["+"]),
        ("[]+]", "+43", ["+"]),
        ("[+-]", "+43", ["+"]),
        (r"[\d]", "+43d", ["d"]),
        ("", "+43", [""]),
        ("()*", "+43", ["", ""]),
        ("(4|43)*", "+", ["", ""]),
        ("a{0}4{2,}", "+4444", ["4444"]),
        ("$", "+43", [""]),
        ("3^4", "34", None),
    ],
)
def test_expressions_find_the_leftmost_and_then_longest(pattern: str, subject: str, expected: list[str] | None) -> None:
    assert Expression(pattern).search(subject, Budget(PLENTY)) == expected


def test_case_is_ignored_on_demand() -> None:
    assert Expression("[A-C]+x", ignore_case=True).search("aBcX", Budget(PLENTY)) == ["aBcX"]
    assert Expression("[A-C]+x").search("aBcX", Budget(PLENTY)) is None


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", ")", "[", "[a", "a{", "a{x}", "a{2", "a{3,2}", "a{256}", "a**", "a{2}{3}", "*", "?a", "^*", "$?"),
        *(r"\d", r"\1", "\\", "[[:nothing:]]", "[[.a.]]", "[b-a]"),
        *("(" * 40 + ")" * 40, "(a{200}){200}", "((a{0,99}){0,99}){0,99}", "a" * 400),
    ],
)
def test_what_is_no_expression_or_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(BadExpression):
        Expression(pattern)


@pytest.mark.parametrize(
    "pattern", ["(1|1|1|1)*x", "((1*)*)*x", "(1?){50}x", "(1+1?)+x", "(.*)*(.*)*(.*)*x", "(1|11|111)*(1|11)*x"]
)
def test_expressions_that_stop_a_backtracking_engine_cost_little(pattern: str) -> None:
    started = time.process_time()
    assert Expression(pattern).search("+" + "1" * 31, Budget(500_000)) is None
    assert time.process_time() - started < 2


def test_the_budget_bounds_what_all_expressions_cost() -> None:
    budget = Budget(1000)
    with pytest.raises(TooCostly):
        Expression("(1?){50}x").search("1" * 31, budget)
    with pytest.raises(TooCostly):
        Expression("1").search("1", budget)


# A grammar whose expressions `re` reads as we do, and that cannot keep it busy.
_ATOMS = st.sampled_from(["1", "2", ".", "[12]", "[^1]", r"\+", "(1)", "(1|2)", "(12|21)", "(2)?"])
_PIECES = st.tuples(_ATOMS, st.sampled_from(["", "*", "+", "?", "{2}", "{1,2}", "{1,}"])).map(
    lambda piece: piece[0] + ("" if piece[0].endswith("?") else piece[1])
)
_PATTERNS = st.lists(_PIECES, min_size=1, max_size=5).map("".join)


@given(_PATTERNS, st.text("+12", max_size=8), st.sampled_from(["", "^"]), st.sampled_from(["", "$"]))
def test_whether_an_expression_matches_and_where_agrees_with_re(
    pattern: str, subject: str, start: str, end: str
) -> None:
    whole = start + pattern + end
    ours = Expression(whole).search(subject, Budget(PLENTY))
    theirs = re.search(whole.replace("$", r"\Z"), subject)
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert subject.find(ours[0]) <= theirs.start()
        # POSIX takes the longest of all, `re` the first that it finds.
        assert len(ours[0]) >= len(theirs[0])
        assert re.fullmatch(pattern, ours[0])


@given(st.text(max_size=40))
def test_any_text_is_an_expression_or_is_refused(pattern: str) -> None:
    try:
        expression = Expression(pattern)
    except BadExpression:
        return
    expression.search("+43123456", Budget(PLENTY))


@pytest.mark.parametrize(
    ("regexp", "uri"),
    [
        ("!^.*$!sip:info@example.com!", "sip:info@example.com"),
        (r"!^\+(.*)$!sip:\1@example.com!", "sip:43123@example.com"),
        (r"/^\+(.*)$/sip:\1@example.com;x=a\/b/i", "sip:43123@example.com;x=a/b"),
        (r"|^\+43(.)(.*)$|sip:\2\1@h|", "sip:231@h"),
        ("!43!sip:only-the-replacement@h!", "sip:only-the-replacement@h"),
        (r"!^(\+43)(9)?.*$!sip:\1\2@h!", "sip:+43@h"),
        ("!^.*$!sip:a\\!b@h!", "sip:a!b@h"),
        ("X^.*$Xsip:a@hX", "sip:a@h"),
    ],
)
def test_a_record_rewrites_the_number(regexp: str, uri: str) -> None:
    assert _uri(regexp) == uri


@pytest.mark.parametrize(
    "regexp",
    [
        *("", "!", "!^.*$!", "!^.*$!sip:a@h", "!^.*$!sip:a@h!!", "1^.*$1sip:a@h1", r"\^.*$\sip:a@h\ ".strip()),
        *(
            "!^.*$!sip:a@h!g",
            "!^44.*$!sip:a@h!",
            r"!^.*$!sip:\1@h!",
            r"!^.*$!sip:\0@h!",
            r"!^.*$!sip:\n@h!",
            "!^(.*$!sip:a@h!",
        ),
        *(
            "!^.*$!no-uri!",
            "!^.*$!sip:a b@h!",
            "!^.*$!sip:a@h\r\nX: y!",
            "!^.*$!sip:a@h>;x!",
            '!^.*$!sip:"a"@h!',
            "!^.*$!sip:ä@h!",
        ),
        *("!^.*$!!", "!^.*$!:a!", "!^.*$!sip:!", "!^.*$!sip:a\x00@h!", "!^.*$!sip:" + "a" * 600 + "!"),
    ],
)
def test_a_record_that_makes_no_uri_is_bad(regexp: str) -> None:
    with pytest.raises(BadRecord):
        _uri(regexp)


@given(
    st.lists(
        st.sampled_from([b"sip:", b"a", b"@h", b"\\1", b"\\", b" ", b"\n", b"<", b'"', b"\x00", b"\xfc", b"!", b";"])
    )
)
def test_no_record_makes_anything_but_a_plain_uri(parts: list[bytes]) -> None:
    regexp = b"!^.(.*)$!sip:" + b"".join(parts) + b"!"
    try:
        uri = uri_of(Naptr(1, 1, "u", "E2U+sip", regexp, "."), "+43123", Budget(PLENTY))
    except BadRecord:
        return
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+", uri)
    assert not set(uri) & set('<>"')


def test_records_are_tried_by_order_and_then_by_preference() -> None:
    records = [_record(str(i), order=order, preference=preference) for i, (order, preference) in enumerate(
        [(20, 1), (10, 9), (10, 2), (20, 0), (5, 99)]
    )]  # fmt: skip
    assert [record.regexp for record in preferred(records)] == [b"4", b"2", b"1", b"3", b"0"]


@pytest.mark.parametrize(
    ("asked", "offered", "takes"),
    [
        ("E2U+sip", "E2U+sip", True),
        ("E2U+sip", "e2u+SIP", True),
        ("sip", "E2U+sip", True),
        ("E2U+sip", "sip+E2U", True),
        ("E2U+sip", "E2U+mailto+sip", True),
        ("E2U+sip", "E2U+email:mailto", False),
        ("E2U+sip", "E2U+pstn:sip", False),
        ("E2U+pstn", "E2U+pstn:sip", True),
        ("E2U+pstn:tel", "E2U+pstn:sip", False),
        ("E2U+pstn:tel+sip", "E2U+sip", True),
        ("E2U+sip", "E2U+sipx", False),
        ("E2U+sip", "E2U", False),
        ("E2U+sip", "", False),
        ("E2U+sip", "sip+E2T", False),
    ],
)
def test_which_services_a_filter_takes(asked: str, offered: str, takes: bool) -> None:
    assert ServiceFilter.parse(asked).takes(offered) is takes


@pytest.mark.parametrize("text", ["", "E2U", "E2U+", "E2U+a b", "sip:", "E2U+" + "x" * 40, "E2U+ä"])
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(ValueError, match="no service"):
        ServiceFilter.parse(text)


def test_the_scheme_has_to_fit_the_service() -> None:
    assert ServiceFilter.parse("E2U+sip").fits("SIPS:a@h")
    assert not ServiceFilter.parse("E2U+sip").fits("mailto:a@h")
    assert ServiceFilter.parse("E2U+sip+tel").fits("tel:+43")
    assert ServiceFilter.parse("E2U+x-mine").fits("anything:a")


def test_flags_and_replacement_say_what_a_record_is() -> None:
    assert Naptr(1, 1, "U", "", b"x", ".").is_terminal
    assert Naptr(1, 1, "", "E2U+sip", b"", "other.example.").leads_to == "other.example."
    for stays in (Naptr(1, 1, "", "", b"", "."), Naptr(1, 1, "s", "", b"", "a."), Naptr(1, 1, "", "", b"!x!y!", "a.")):
        assert stays.leads_to is None
        assert not stays.is_terminal


def test_numbers_become_names() -> None:
    assert number_of(b"+43 (1) 234-567.8") == "+4312345678"
    assert name_of("+431234", "e164.arpa.") == "4.3.2.1.3.4.e164.arpa."


@pytest.mark.parametrize(
    "text", [b"", b"+", b"+4", b"4312345", b" 4312345", b"+43a", b"+" + b"1" * 32, b"+43\n", b"+\xd9\xa1\xd9\xa2"]
)
def test_what_is_no_number(text: bytes) -> None:
    with pytest.raises(ValueError, match="digits"):
        number_of(text)
