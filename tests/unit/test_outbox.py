"""What a session has to say, and how it is put into messages."""

from __future__ import annotations

import pytest

from sipnap.client import outbox as outbox_module
from sipnap.client.keys import SuspensionKey, key_of
from sipnap.client.outbox import Outbox
from sipnap.client.outstanding import Outstanding, Suspended
from sipnap.v1 import front_end_service_pb2 as wire
from sipnap.v1 import suspension_pb2 as pb


def nap(number: int) -> SuspensionKey:
    return SuspensionKey("proxy", 1, number, 5, 1)


@pytest.fixture
def table() -> Outstanding:
    return Outstanding(lambda: 100.0)


@pytest.fixture
def outbox(table: Outstanding) -> Outbox:
    return Outbox(table)


def suspend(table: Outstanding, outbox: Outbox, number: int) -> Suspended:
    encoded = pb.Suspension(key=pb.SuspensionKey(transaction_index=number)).SerializeToString()
    suspended = Suspended(nap(number), encoded, "R", number / 1000)
    assert table.add(suspended)
    outbox.suspends.append(suspended)
    return suspended


def next_message(outbox: Outbox) -> tuple[wire.SessionRequest, list[Suspended]]:
    frame, shipped = outbox.next_frame()
    return wire.SessionRequest.FromString(frame.SerializeToString()), list(shipped)


def test_all_that_there_is_leaves_in_one_message(table: Outstanding, outbox: Outbox) -> None:
    assert not outbox
    suspended = suspend(table, outbox, 1)
    outbox.cancels.append(nap(2))
    outbox.results.append((nap(3), pb.CONTINUE_OUTCOME_REJECTED))
    outbox.applied += [7, 8]
    outbox.heartbeat_wanted = True
    message, shipped = next_message(outbox)
    assert not outbox
    assert ([each.key.transaction_index for each in message.suspends], shipped) == ([1], [suspended])
    assert [key_of(each) for each in message.cancels] == [nap(2)._replace(front_end_id="")]
    assert [(each.key.transaction_index, each.outcome) for each in message.results] == [
        (3, pb.CONTINUE_OUTCOME_REJECTED)
    ]
    assert (list(message.applied), message.HasField("heartbeat"), message.frame_number) == ([7, 8], True, 1)


@pytest.mark.parametrize("what", ["suspends", "cancels", "results", "applied", "heartbeat_wanted"])
def test_each_of_them_is_something_to_say(outbox: Outbox, what: str) -> None:
    setattr(outbox, what, True if what == "heartbeat_wanted" else [1])
    assert outbox


def test_only_frames_that_submit_something_have_a_number(table: Outstanding, outbox: Outbox) -> None:
    numbers: list[int] = []
    for has_suspend in (True, False, True):
        if has_suspend:
            suspend(table, outbox, len(numbers))
        numbers.append(next_message(outbox)[0].frame_number)
    assert numbers == [1, 0, 2]
    assert outbox.begin_stream() == 2
    assert next_message(outbox)[0].frame_number == 1, "each stream counts for itself"


def test_what_is_left_of_each_delay_is_said_with_it(table: Outstanding, outbox: Outbox) -> None:
    for number in (7, 2, 5):
        suspend(table, outbox, number)
    table.answer(nap(2), pb.CONTINUE_OUTCOME_GONE)
    message, _ = next_message(outbox)
    left_us = {
        suspension.key.transaction_index: left_us
        for suspension, left_us in zip(message.suspends, message.left_us, strict=True)
    }
    assert left_us == pytest.approx({7: 7000, 5: 5000}, abs=1.1)


def test_the_answer_to_a_message_is_for_what_was_in_it(table: Outstanding, outbox: Outbox) -> None:
    first, second, third = (suspend(table, outbox, number) for number in (1, 2, 3))
    table.answer(nap(2), pb.CONTINUE_OUTCOME_GONE)
    next_message(outbox)
    fourth = suspend(table, outbox, 4)
    next_message(outbox)
    table.answer(nap(3), pb.CONTINUE_OUTCOME_GONE)
    assert list(outbox.take_frame(2)) == [fourth]
    assert list(outbox.take_frame(1)) == [first, third], "what was sent, whatever became of it"
    assert not second.number
    assert list(outbox.take_frame(1)) == [], "a message is answered once"
    suspend(table, outbox, 5)
    next_message(outbox)
    outbox.begin_stream()
    assert list(outbox.take_frame(3)) == [], "that was in another stream"


def test_a_large_message_is_cut(table: Outstanding, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 9):
        suspend(table, outbox, number)
    size = len(outbox.suspends[0].encoded)
    monkeypatch.setattr(outbox_module, "_MOST_BYTES_PER_MESSAGE", 4 * size)
    sent = []
    while outbox:
        message, shipped = next_message(outbox)
        assert 0 < len(message.suspends) == len(shipped) <= 4
        assert list(outbox.take_frame(message.frame_number)) == shipped
        sent += [suspension.key.transaction_index for suspension in message.suspends]
    assert sent == list(range(1, 9))


def test_a_message_has_an_end(table: Outstanding, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "_MOST_ENTRIES_PER_MESSAGE", 2)
    for number in range(1, 4):
        suspend(table, outbox, number)
        outbox.cancels.append(nap(10 + number))
        outbox.results.append((nap(20 + number), pb.CONTINUE_OUTCOME_GONE))
    sizes = []
    while outbox:
        message, shipped = next_message(outbox)
        assert len(shipped) == len(message.suspends) == len(message.left_us)
        sizes.append((len(message.suspends), len(message.cancels), len(message.results)))
    assert sizes == [(2, 2, 2), (1, 1, 1)]


def test_what_is_over_meanwhile_is_not_submitted(table: Outstanding, outbox: Outbox) -> None:
    suspend(table, outbox, 1)
    table.answer(nap(1), pb.CONTINUE_OUTCOME_GONE)
    message, shipped = next_message(outbox)
    assert (len(message.suspends), message.frame_number, shipped) == (0, 0, [])


def test_a_new_stream_hears_what_is_not_delivered_and_no_old_answers(table: Outstanding, outbox: Outbox) -> None:
    first, second = (suspend(table, outbox, number) for number in (1, 2))
    next_message(outbox)
    table.set_numbers(outbox.take_frame(1), [5, 6])
    assert table.deliver_due([5]) == ([first], [])
    outbox.applied.append(5)
    outbox.results.append((nap(3), pb.CONTINUE_OUTCOME_GONE))
    outbox.cancels.append(nap(4))
    assert outbox.begin_stream() == 1
    message, shipped = next_message(outbox)
    assert shipped == [second]
    assert (list(message.applied), len(message.results), len(message.cancels)) == ([], 0, 1)
    assert table.answer(nap(1), pb.CONTINUE_OUTCOME_APPLIED) == 0, "its number was of the old stream"


def test_what_belongs_to_an_old_life_is_not_asked_for(table: Outstanding, outbox: Outbox) -> None:
    suspend(table, outbox, 1)
    next_message(outbox)
    suspend(table, outbox, 3)
    outbox.cancels.append(nap(2))
    outbox.clear()
    assert not outbox
    assert list(outbox.take_frame(1)) == [], "nor is it given numbers"
