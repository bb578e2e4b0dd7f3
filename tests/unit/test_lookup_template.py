"""Templates: no value can leave its place."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
import yarl
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sipnap.client.operations import OperationError
from sipnap.sidecar.lookups.allowed_hosts import AllowedHost, AllowedHosts
from sipnap.sidecar.lookups.template import Origin, TemplateError, Text, UrlTemplate, Values
from sipnap.v1 import suspension_pb2 as pb

HOSTILE = [
    *(b"..", b".", b"/", b"../admin", b"..%2fadmin", b"%2e%2e", b"%252e%252e/", b"a/../../b", b"\\..\\", b"..;/x"),
    *(b"?x=1", b"#f", b"&a=b", b"a=b", b"@evil.example", b"//evil.example/", b":8080", b"http://evil.example/"),
    *(b"\r\nHost: evil", b"%0d%0a", b"\x00", b"\xff\xfe", b"%", b"%zz", b"{other}", b" ", b"+", b""),
    # Overlong UTF-8, fullwidth characters, an override of the direction.
    *(b"\xc0\xae\xc0\xae/", "\uff0f\uff0e\uff0e".encode(), "\u202e".encode()),
]

VALUES = st.one_of(st.sampled_from(HOSTILE), st.binary(max_size=24), st.text(max_size=12).map(str.encode))


def _values(**arguments: bytes) -> Values:
    return Values(arguments, pb.TransactionState())


def _filled(template: UrlTemplate, **arguments: bytes) -> str | None:
    """None: it is refused, which is safe as well."""
    try:
        return template.filled(_values(**arguments))
    except OperationError:
        return None


def _hostile(test: Callable[[bytes, bytes], None]) -> Callable[[bytes, bytes], None]:
    """Each of the known tricks as an example of its own."""
    for value in HOSTILE:
        test = example(value, b"x")(example(b"x", value)(test))
    return test


@_hostile
@given(VALUES, VALUES)
def test_no_value_changes_where_a_url_leads_or_how_many_parts_it_has(first: bytes, second: bytes) -> None:
    template = UrlTemplate.parse(
        "https://api.example.com:8443/v1/{first}/x-{second}.json?n={first}&fixed=1&m=a{second}b"
    )
    url = _filled(template, first=first, second=second)
    assume(url is not None)
    assert url is not None
    for parsed in (urlsplit(url), yarl.URL(url, encoded=True)):
        assert (parsed.scheme, parsed.hostname if isinstance(parsed, tuple) else parsed.host) == (
            "https",
            "api.example.com",
        )
        assert parsed.port == 8443
        assert not parsed.fragment
    assert yarl.URL(url, encoded=True).user is None
    path, _, query = url.removeprefix("https://api.example.com:8443").partition("?")
    segments = path.split("/")
    assert len(segments) == 4
    assert segments[:2] == ["", "v1"]
    assert unquote_to_bytes(segments[2]) == first
    assert unquote_to_bytes(segments[3]) == b"x-" + second + b".json"
    assert not any(unquote_to_bytes(segment) in (b"", b".", b"..") for segment in segments[1:])
    pairs = [pair.split("=") for pair in query.split("&")]
    assert [name for name, _ in pairs] == ["n", "fixed", "m"]
    assert [unquote_to_bytes(value) for _, value in pairs] == [first, b"1", b"a" + second + b"b"]
    assert url.isascii()
    assert not any(character <= " " or character in '"<>\\^`{|}\x7f' for character in url)
    # A second reader, who normalises, comes to the same place.
    assert len(yarl.URL(url).raw_parts) == len(segments)


@pytest.mark.parametrize(
    "value",
    [b"..", b".", b"a/../b", b"../x", b"%2e%2e", b"%252e%252e", b"..%2fx", b"a\\..\\b", b"..;x", b"", b"\r\n", b"%0a"],
)
def test_what_a_server_could_decode_into_another_path_is_refused_there_but_not_in_the_query(value: bytes) -> None:
    with pytest.raises(OperationError) as refused:
        UrlTemplate.parse("http://host/a/{x}").filled(_values(x=value))
    assert refused.value.code == "http_bad_arguments"
    assert refused.value.retry_after_seconds is None
    filled = UrlTemplate.parse("http://host/a?x={x}").filled(_values(x=value))
    assert unquote_to_bytes(filled.partition("?x=")[2]) == value


def test_two_values_that_are_dots_only_together_are_refused() -> None:
    with pytest.raises(OperationError):
        UrlTemplate.parse("http://host/{x}{y}/z").filled(_values(x=b".", y=b"."))


@pytest.mark.parametrize(
    "url",
    [
        "http://{host}/", "{scheme}://host/", "http://host:{port}/", "http://user@host/", "http://user:pw@host/",
        "ftp://host/", "HTTP://host/", "//host/", "host/x", "http://", "http://host\\@evil/", "http://ho st/",
        "http://host/#fragment", "http://host/{x}#f", "http://host/?{name}=1", "http://host/?a{name}=1",
        "http://host/?a&=b", "http://host/?a=b&", "http://host/a b", "http://host/\n", "http://host/ä", "http://hö/",
        "http://host/../x", "http://host/%2e%2e/x", "http://host/{x", "http://host/{x}}", "http://host/{{x}}",
        "http://host/%{x}", "http://host/%2{x}", "http://host/%zz", "http://host/{a b}", "http://host/{state.nothing}",
        "http://host/{state.raw_request}", "http://host:0/", "http://host:70000/", "http://1.2.3/", "http://0x7f.1/",
        "http://999.1.1.1/", "http://[::g]/", "http://-host/",
    ],
)  # fmt: skip
def test_a_template_that_leaves_anything_open_is_none(url: str) -> None:
    with pytest.raises(TemplateError):
        UrlTemplate.parse(url)


def test_the_state_of_the_transaction_fills_places_too() -> None:
    state = pb.TransactionState(
        method=b"INVITE",
        cseq=7,
        source_ip="192.0.2.1",
        avps=[pb.Avp(name="who", text=b"a&b"), pb.Avp(name="n", integer=-3)],
    )
    template = UrlTemplate.parse(
        "http://h/{state.method}/{state.source_ip}?c={state.cseq}&w={state.avp.who}&n={state.avp.n}&f={state.from}&no={state.avp.no}"
    )
    assert template.filled(Values({}, state)) == "http://h:80/INVITE/192.0.2.1?c=7&w=a%26b&n=-3&f=&no="


def test_a_missing_argument_and_a_list_are_named() -> None:
    template = UrlTemplate.parse("http://h/{number}")
    with pytest.raises(OperationError, match="needs an argument 'number'"):
        template.filled(_values())
    with pytest.raises(OperationError, match="'number' is a list"):
        template.filled(Values({"number": [b"1", b"2"]}, pb.TransactionState()))


def test_numbers_and_booleans_are_written_out() -> None:
    values = Values({"n": 42, "b": True, "s": "ü"}, pb.TransactionState())
    assert UrlTemplate.parse("http://h/{n}/{b}/{s}").filled(values) == "http://h:80/42/true/%C3%BC"


def test_braces_in_texts() -> None:
    text = Text.parse("{{{a}}} {b}{{}}")
    assert text.places == ("a", "b")
    assert text.filled(str.upper) == "{A} B{}"


@given(st.text(max_size=30))
def test_text_without_braces_is_itself(text: str) -> None:
    assume("{" not in text and "}" not in text)
    assert Text.parse(text).filled(str) == text


@pytest.mark.parametrize(
    ("entry", "url", "is_allowed"),
    [
        ("example.com", "http://example.com/", True),
        ("example.com", "https://example.com/", True),
        ("example.com", "https://EXAMPLE.com./", True),
        ("example.com", "http://example.com:443/", False),
        ("example.com", "http://example.com:8080/", False),
        ("example.com", "http://www.example.com/", False),
        ("example.com", "http://example.com.evil.example/", False),
        ("example.com:8080", "http://example.com:8080/", True),
        ("example.com:8080", "http://example.com/", False),
        ("127.0.0.1", "http://127.0.0.1/", True),
        ("127.0.0.1", "http://localhost/", False),
        ("[::1]:80", "http://[0:0::1]/", True),
        ("[::1]", "http://[::1]:81/", False),
    ],
)
def test_only_hosts_on_the_list_are_allowed(entry: str, url: str, is_allowed: bool) -> None:
    allowed = AllowedHosts([AllowedHost.parse(entry)])
    origin = UrlTemplate.parse(url).origin
    assert (origin in allowed) is is_allowed
    if not is_allowed:
        with pytest.raises(TemplateError, match="--http-allow"):
            allowed.check(origin)


def test_the_entry_that_a_refusal_names_is_the_one_that_would_allow_it() -> None:
    for origin in (Origin("http", "h.example", 80), Origin("https", "h.example", 8443), Origin("http", "::1", 90)):
        with pytest.raises(TemplateError) as refused:
            AllowedHosts([]).check(origin)
        entry = str(refused.value).partition("--http-allow ")[2].split()[0]
        AllowedHosts([AllowedHost.parse(entry)]).check(origin)


@pytest.mark.parametrize(
    "text", ["", "http://host", "host:", "host:0", "host:99999", "*.example.com", "a@b", "host/x", "::1", "1.2"]
)
def test_what_is_no_entry_of_the_list(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        AllowedHost.parse(text)
