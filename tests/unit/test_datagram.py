"""The proxy's datagrams: everything that SIP may contain comes through, and nothing of it changes anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.operations import arguments_of
from sipnap.client.request_head import RequestName, complete, head_and_call_id, head_of
from sipnap.shim.kamailio import datagram
from sipnap.shim.kamailio.datagram import (
    Answer,
    Cancel,
    DatagramError,
    Task,
    UnreadableRequest,
)
from sipnap.shim.kamailio.nap import Nap
from sipnap.v1 import suspension_pb2 as pb

LINE = b"SN1 S 1700000000 12345 4000000000 2 2500 RESUME 192.0.2.7 5062 %d"
HEADERS = {
    b"Via": b"SIP/2.0/UDP 192.0.2.7:5062;branch=z9hG4bK-1",
    b"From": b'"Alice" <sip:alice@example.com>;tag=1',
    b"To": b"<sip:bob@example.com>",
    b"Call-ID": b"abc@192.0.2.7",
    b"CSeq": b"7 INVITE",
}


def message(changes: dict[bytes, bytes | None] | None = None, *, names: dict[bytes, bytes] | None = None) -> bytes:
    """An INVITE with some of its headers changed, left out (None) or renamed."""
    headers: dict[bytes, bytes | None] = {**HEADERS, **(changes or {})}
    lines = [b"INVITE sip:bob@example.com SIP/2.0"]
    lines += [(names or {}).get(name, name) + b": " + value for name, value in headers.items() if value is not None]
    return b"\r\n".join((*lines, b"Content-Length: 4", b"", b"v=0\n"))


def suspended(request: bytes, *, uri: bytes = b"sip:bob@192.0.2.9", avps: bytes = b"", values: bytes = b"") -> bytes:
    return LINE % len(request) + avps + b"\n" + request + values + uri


def test_all_of_it() -> None:
    read = datagram.read(
        suspended(message(), avps=b" tenant:5 unset: empty:0 n:2", values=b"a b:\n42"), front_end_id="kamailio"
    )
    assert isinstance(read, Nap)
    suspension = read.suspension
    key, state = suspension.key, complete(suspension.state)
    assert (key.boot_epoch, key.transaction_index, key.transaction_label) == (1_700_000_000, 12345, 4_000_000_000)
    assert (key.nap_number, key.front_end_id) == (2, "")
    assert suspension.resume_route == "RESUME"
    assert (read.key, read.route) == (("kamailio", 1_700_000_000, 12345, 4_000_000_000, 2), "RESUME")
    assert (read.delay_seconds, suspension.delay.ToMilliseconds()) == (2.5, 2500)
    assert read.deadline_seconds is None
    assert not suspension.HasField("deadline")
    assert state.method == b"INVITE"
    assert state.request_uri == b"sip:bob@192.0.2.9"
    assert getattr(state, "from") == HEADERS[b"From"]
    assert state.to == HEADERS[b"To"]
    assert (state.call_id, state.cseq, state.via_branch) == (b"abc@192.0.2.7", 7, b"z9hG4bK-1")
    assert (state.source_ip, state.source_port) == ("192.0.2.7", 5062)
    assert [(avp.name, avp.text) for avp in state.avps] == [("tenant", b"a b:\n"), ("empty", b""), ("n", b"42")]
    assert state.raw_request == b""
    assert read.call_id == b"abc@192.0.2.7"


def test_the_raw_request_if_asked_for() -> None:
    read = datagram.read(suspended(message()), ship_raw_request=True)
    assert isinstance(read, Nap)
    assert read.suspension.state.raw_request == message()
    assert not read.suspension.state.head, "it is in there"
    assert read.call_id == b"abc@192.0.2.7"


@pytest.mark.parametrize(
    "request_",
    [message(), message().replace(b"\r\n", b"\n"), b"\r\n" + message(), message({b"To": None}), b"", b"\x00 no SIP"],
)
def test_the_head_goes_as_it_is(request_: bytes) -> None:
    """What nobody has to read is not read; the body stays here."""
    read = datagram.read(suspended(request_))
    assert isinstance(read, Nap)
    assert read.suspension.state.head == head_of(request_)
    assert b"v=0" not in read.suspension.state.head
    assert read.call_id == head_and_call_id(request_)[1]
    assert read.suspension.state.request_uri == b"sip:bob@192.0.2.9"


HOSTILE_VALUE = st.binary(min_size=1, max_size=300).map(lambda value: value.translate(None, b"\r\n").strip(b" \t"))


@given(from_value=HOSTILE_VALUE, call_id=HOSTILE_VALUE, to_value=HOSTILE_VALUE, uri=st.binary(max_size=100))
def test_any_bytes_come_through(from_value: bytes, call_id: bytes, to_value: bytes, uri: bytes) -> None:
    request = message({b"From": from_value, b"Call-ID": call_id, b"To": to_value})
    read = datagram.read(suspended(request, uri=uri))
    assert isinstance(read, Nap)
    assert read.call_id == call_id
    state = complete(read.suspension.state)
    assert (getattr(state, "from"), state.call_id, state.to, state.request_uri) == (from_value, call_id, to_value, uri)
    assert (state.cseq, state.via_branch) == (7, b"z9hG4bK-1")
    assert read.suspension.resume_route == "RESUME"


@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda rest: b"SN1 S " + rest))
def test_garbage_is_an_error_and_nothing_else(garbage: bytes) -> None:
    with pytest.raises(DatagramError):
        datagram.read(garbage)


@given(cut=st.integers(min_value=0, max_value=len(suspended(message(), uri=b"")) - 1))
def test_every_cut_is_noticed(cut: int) -> None:
    with pytest.raises(DatagramError):
        datagram.read(suspended(message(), uri=b"")[:cut])


@pytest.mark.parametrize(
    "line",
    [
        b"SN1 S 1 2 3 1 0 RESUME 192.0.2.7 5062 5",
        b"SN1 S 1 2 3 1 -5 RESUME 192.0.2.7 5062 5",
        b"SN1 S 1 2 3 1 1000 RE/SUME 192.0.2.7 5062 5",
        b"SN1 S 1 2 3 1 1000 " + b"R" * 65 + b" 192.0.2.7 5062 5",
        b"SN1 S 1 2 5000000000 1 1000 RESUME 192.0.2.7 5062 5",
        b"SN1 S -1 2 3 1 1000 RESUME 192.0.2.7 5062 5",
        b"SN1 S x 2 3 1 1000 RESUME 192.0.2.7 5062 5",
        b"SN1 S 1 2 3 1 1000 RESUME \xff 5062 5",
        b"SN1 S 1 2 3 1 1000 RESUME",
        b"SN2 S 1 2 3 1 1000 RESUME 192.0.2.7 5062 5",
        b"SN1 X 1",
        b"SN1 A 1 200",
        b"SN1 A 1 x user",
        b"SN1 C 1",
        b"",
    ],
)
def test_malformed_lines(line: bytes) -> None:
    with pytest.raises(DatagramError) as caught:
        datagram.read(line + b"\nhello")
    assert not isinstance(caught.value, UnreadableRequest)


def test_what_is_cut_off_can_still_be_resumed() -> None:
    with pytest.raises(UnreadableRequest, match="cut off") as caught:
        datagram.read(suspended(message(), uri=b"")[:-1])
    nap = caught.value.nap
    assert (nap.key, nap.route) == (("", 1_700_000_000, 12345, 4_000_000_000, 2), "RESUME")
    assert nap.encoded == b"", "no state"


@pytest.mark.parametrize(("cancel", "why"), [(b"", "no SIP request"), (message({b"CSeq": None}), "without CSeq")])
def test_a_cancel_that_cannot_be_read(cancel: bytes, why: str) -> None:
    with pytest.raises(DatagramError, match=f"a CANCEL: .*{why}") as caught:
        datagram.read(b"SN1 C 1700000000\n" + cancel)
    assert not isinstance(caught.value, UnreadableRequest)


def test_an_avp_that_claims_more_than_there_is() -> None:
    with pytest.raises(UnreadableRequest, match="cut off"):
        datagram.read(suspended(message(), avps=b" tenant:99999"))
    with pytest.raises(UnreadableRequest, match="no AVP"):
        datagram.read(suspended(message(), avps=b" 5"))


def test_a_cancel_names_the_request_that_it_cancels() -> None:
    cancel = message({b"CSeq": b"7 CANCEL"}).replace(b"INVITE sip", b"CANCEL sip")
    assert datagram.read(b"SN1 C 1700000000\n" + cancel) == Cancel(
        1_700_000_000, RequestName(b"abc@192.0.2.7", 7, b"z9hG4bK-1")
    )


def test_an_answer() -> None:
    assert datagram.read(b"SN1 A 1700000000 481 1.2.3.4.ok") == Answer(1_700_000_000, 481, b"1.2.3.4.ok")


def asked(*parts: bytes, request: bytes | None = None, avps: bytes = b"", values: bytes = b"") -> bytes:
    """A nap with operations: name, arguments and group of each."""
    sip = message() if request is None else request
    line = (LINE % len(sip)).replace(b"SN1 S", b"SN1 O")
    sizes = b",".join(b"%d" % len(part) for part in parts)
    return b"%s %s%s\n%s%s%ssip:bob@192.0.2.9" % (line, sizes, avps, b"".join(parts), sip, values)


def test_operations() -> None:
    read = datagram.read(
        asked(
            b"http", b"template=route&number=%2B49+30&empty=", b"lookups",
            b"enum", b"", b"",
            b"third", b"0", b"0",
            avps=b" tenant:5", values=b"a b:\n",
        )
    )  # fmt: skip
    assert isinstance(read, Nap)
    first, second, third = read.suspension.operations
    assert (first.name, first.group, first.prefix) == ("http", "lookups", "")
    assert arguments_of(first.arguments) == {"template": b"route", "number": b"+49 30", "empty": b""}
    assert (second.name, second.group, second.prefix, list(second.arguments)) == ("enum", "", "2_", [])
    assert (third.name, third.group, third.prefix, list(third.arguments)) == ("third", "", "3_", [])
    state = complete(read.suspension.state)
    assert (state.call_id, state.request_uri) == (b"abc@192.0.2.7", b"sip:bob@192.0.2.9")
    assert [(avp.name, avp.text) for avp in state.avps] == [("tenant", b"a b:\n")]
    assert read.suspension.key.nap_number == 2
    assert (read.call_id, read.delay_seconds, read.has_operations) == (b"abc@192.0.2.7", 2.5, True)


@given(value=st.binary(max_size=200), name=st.from_regex(r"[A-Za-z0-9_]{1,64}", fullmatch=True))
def test_any_bytes_are_an_argument(value: bytes, name: str) -> None:
    encoded = "".join(f"%{byte:02x}" for byte in value).encode()
    read = datagram.read(asked(b"op", b"%s=%s" % (name.encode(), encoded), b""))
    assert isinstance(read, Nap)
    assert arguments_of(read.suspension.operations[0].arguments) == {name: value}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (b"number", "no argument"),
        (b"=7", "no argument"),
        (b"a=1&", "no argument"),
        (b"a b=1", "no argument"),
        (b"a=1&a=2", "argument a is there twice"),
        (b"a=sip:x@y", "not urlencoded"),
        (b"a=%zz", "not urlencoded"),
        (b"a=%4", "not urlencoded"),
        (b"a=\xff", "not urlencoded"),
        (b"a=b=c", "not urlencoded"),
        (b"a=\x00", "not urlencoded"),
        (b"a=1\n", "not urlencoded"),
        (b"x" * 65 + b"=1", "no argument"),
        (b"&".join(b"a%d=1" % number for number in range(65)), "more than 64 arguments"),
    ],
)
def test_malformed_arguments(arguments: bytes, why: str) -> None:
    """The transaction is suspended: it can be resumed, and has to be."""
    with pytest.raises(UnreadableRequest, match=f"operation 2: .*{why}") as caught:
        datagram.read(asked(b"op", b"", b"", b"other", arguments, b""))
    assert caught.value.code == "bad_arguments"
    nap = caught.value.nap
    assert (nap.key, nap.route) == (("", 1_700_000_000, 12345, 4_000_000_000, 2), "RESUME")
    assert nap.encoded == b"", "neither state nor operations"


@pytest.mark.parametrize(
    ("name", "group"), [(b"", b""), (b"o p", b""), (b"\xff", b""), (b"op", b"a b"), (b"op", b"\n")]
)
def test_malformed_names_of_operations(name: bytes, group: bytes) -> None:
    with pytest.raises(UnreadableRequest, match="is no name of") as caught:
        datagram.read(asked(name, b"", group))
    assert caught.value.code == "bad_arguments"


def test_operations_on_what_is_no_request() -> None:
    """They may need nothing of it; those that do see that there is nothing."""
    read = datagram.read(asked(b"op", b"a=1", b"", request=b"no SIP"))
    assert isinstance(read, Nap)
    assert complete(read.suspension.state).call_id == b""
    assert [operation.name for operation in read.suspension.operations] == ["op"]


@pytest.mark.parametrize(
    "sizes", [b"", b"1", b"1,2", b"1,2,3,", b"1,2,3,4", b"-1,2,3", b"1,2,3" + b",1,1,1" * 4, b"999999,1,1"]
)
def test_malformed_sizes(sizes: bytes) -> None:
    datagram_ = asked(b"op", b"a=1", b"").replace(b" 2,3,0\n", b" %s\n" % sizes)
    with pytest.raises(DatagramError, match="sizes of their parts") as caught:
        datagram.read(datagram_)
    assert not isinstance(caught.value, UnreadableRequest)


@given(cut=st.integers(min_value=0, max_value=len(asked(b"op", b"a=1", b"g")) - len("sip:bob@192.0.2.9") - 1))
def test_every_cut_of_operations_is_noticed(cut: int) -> None:
    with pytest.raises(DatagramError):
        datagram.read(asked(b"op", b"a=1", b"g")[:cut])


@given(
    st.binary(max_size=300), st.sampled_from([b"SN1 O ", b"SN1 T ", b"SN1 O 1 2 3 1 1 R 1 1 0 ", b"SN1 T 1 1 R 1 1\n"])
)
def test_garbage_of_the_new_kinds(garbage: bytes, start: bytes) -> None:
    try:
        read = datagram.read(start + garbage)
    except DatagramError:
        return
    assert isinstance(read, Task), "two bytes may be data and group"
    assert len(garbage) == 2


def test_a_task() -> None:
    data, group = b"a b\n\xff", b"reports"
    read = datagram.read(b"SN1 T 1700000000 250 ACCOUNT %d %d\n%s%s" % (len(data), len(group), data, group))
    assert isinstance(read, Task)
    assert read.boot_epoch == 1_700_000_000
    suspension = read.suspension
    assert (suspension.resume_route, suspension.data) == ("ACCOUNT", data)
    assert suspension.delay.ToMilliseconds() == read.delay_ms == 250
    assert [(operation.name, operation.group) for operation in suspension.operations] == [("pass", "reports")]


@pytest.mark.parametrize(("group", "ms"), [(b"", 1), (b"0", 1), (b"g", datagram.TASK_WAIT_MS)])
def test_a_task_without_a_time(group: bytes, ms: int) -> None:
    read = datagram.read(b"SN1 T 1 0 R 1 %d\nx%s" % (len(group), group))
    assert isinstance(read, Task)
    assert read.suspension.delay.ToMilliseconds() == read.delay_ms == ms
    assert len(read.suspension.operations) == (group == b"g")


@pytest.mark.parametrize(
    "task",
    [
        b"SN1 T 1 0 R 1 0",
        b"SN1 T 1 0 R 1 0\n",
        b"SN1 T 1 0 R 1 0\nxy",
        b"SN1 T 1 0 R/ 1 0\nx",
        b"SN1 T 1 -5 R 1 0\nx",
        b"SN1 T x 0 R 1 0\nx",
        b"SN1 T 1 1099511627777 R 1 0\nx",
        b"SN1 T 1 0 R 1\nx",
        b"SN1 T 1 0 R 1 1\nx ",
        b"SN1 T 1 0 R 99999999999999999999 0\nx",
    ],
)
def test_malformed_tasks(task: bytes) -> None:
    with pytest.raises(DatagramError):
        datagram.read(task)


# What it is encoded to

WORDS = st.integers(0, 2**32 - 1)
AVPS = st.lists(
    st.tuples(st.from_regex(r"[!-9;-~]{1,64}", fullmatch=True), st.binary(max_size=300)), max_size=4
)  # fmt: skip


@given(
    epoch=st.integers(0, 2**64 - 1) | st.sampled_from([0, 1_700_000_000, 2**64 - 1]),
    index=WORDS,
    label=WORDS,
    nap=WORDS | st.integers(0, 12),
    ms=st.integers(1, 2**40) | st.integers(1, 5000),
    route=st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True),
    source=st.tuples(st.from_regex(r"[!-~]{1,45}", fullmatch=True), st.integers(0, 2**32 - 1)),
    sip=st.binary(max_size=300) | st.just(message()) | st.just(message({b"To": b"x" * 40_000})),
    avps=AVPS,
    uri=st.binary(max_size=300),
    is_raw=st.booleans(),
)
def test_it_is_what_protobuf_makes_of_it(
    epoch: int,
    index: int,
    label: int,
    nap: int,
    ms: int,
    route: str,
    source: tuple[str, int],
    sip: bytes,
    avps: list[tuple[str, bytes]],
    uri: bytes,
    is_raw: bool,
) -> None:
    line = f"SN1 S {epoch} {index} {label} {nap} {ms} {route} {source[0]} {source[1]} {len(sip)}"
    sizes = "".join(f" {name}:{len(value)}" for name, value in avps)
    values = b"".join(value for _, value in avps)
    read = datagram.read(
        f"{line}{sizes}\n".encode() + sip + values + uri, front_end_id="kamailio", ship_raw_request=is_raw
    )
    expected = pb.Suspension(
        key=pb.SuspensionKey(boot_epoch=epoch, transaction_index=index, transaction_label=label, nap_number=nap),
        resume_route=route,
        state=pb.TransactionState(
            request_uri=uri,
            source_ip=source[0],
            source_port=source[1],
            head=b"" if is_raw else head_of(sip),
            raw_request=sip if is_raw else b"",
            avps=[pb.Avp(name=name, text=value) for name, value in avps],
        ),
    )
    expected.delay.FromMilliseconds(ms)
    assert isinstance(read, Nap)
    assert pb.Suspension.FromString(read.encoded) == expected
    assert (read.key, read.route) == (("kamailio", epoch, index, label, nap), route)
    assert read.delay_seconds == ms * 1e-3
    assert (read.has_operations, read.sendings, read.not_found, read.number) == (False, 0, 0, 0)


@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        (word, wrong)
        for word, most in ((2, 2**64), (3, 2**32), (4, 2**32), (5, 2**32), (6, 2**40 + 1), (9, 2**32))
        for wrong in (b"%d" % most, b"-1", b"", b"x", b"1.0", b"0x1", b"9" * 1900)
        if (word, wrong) != (6, b"-1")
    ]
    + [(6, b"0"), (6, b"-1"), (7, b""), (7, b"a b"), (7, b"\xff"), (8, b"\xff"), (10, b"-1"), (10, b"x"), (10, b"")],
)
def test_a_number_out_of_its_range(word: int, wrong: bytes) -> None:
    """Also when the good one beside it was read before."""
    good = suspended(message())
    line, _, rest = good.partition(b"\n")
    words = line.split(b" ")
    words[word] = wrong
    for _ in range(2):
        assert isinstance(datagram.read(good), Nap)
        with pytest.raises(DatagramError) as caught:
            datagram.read(b" ".join(words) + b"\n" + rest)
        assert not isinstance(caught.value, UnreadableRequest)


@pytest.mark.parametrize(
    "line", [LINE % 0, LINE.replace(b" S ", b" O ") % 0 + b" 0,0,0", b"SN1 T 1 5 R 0 0", b"SN1 T 1 0 R 0 0"]
)
def test_a_line_without_an_end(line: bytes) -> None:
    """It was cut off there: what its sizes say may not be all."""
    with pytest.raises(DatagramError, match="no end within"):
        datagram.read(line)


def test_a_line_that_is_too_long() -> None:
    line = LINE % 0
    pad = 2047 - len(line)
    avps = b" unset:" * (pad // 7 - 1)
    longest = line + avps + b" " + b"x" * (pad - len(avps) - 2) + b":"
    assert len(longest) == 2047
    assert isinstance(datagram.read(longest + b"\n"), Nap)
    with pytest.raises(DatagramError, match="no end within"):
        datagram.read(longest.replace(b" x", b" xx") + b"\n")


def test_what_is_kept_of_addresses_is_bounded() -> None:
    for port in range(datagram._MOST_PIECES + 10):
        read = datagram.read(suspended(message()).replace(b" 5062 ", b" %d " % port))
        assert isinstance(read, Nap)
        assert read.suspension.state.source_port == port
    assert len(datagram._SOURCES) <= datagram._MOST_PIECES
