"""What a session has to tell its sidecar, and the frames that say it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from sipnap.client.frames import SessionFrame
from sipnap.client.keys import Key, fill_key
from sipnap.client.outstanding import Outstanding, Suspended
from sipnap.v1 import suspension_pb2 as pb

_MOST_ENTRIES_PER_MESSAGE = 512
_MOST_BYTES_PER_MESSAGE = 4 * 1024 * 1024  # far below `MAX_MESSAGE_BYTES`, over which gRPC ends the stream


class Outbox:
    """Everything that waits for the stream's writer, while there is a stream and while there is none."""

    __slots__ = ("_frame_number", "_frames", "_table", "applied", "cancels", "heartbeat_wanted", "results", "suspends")

    def __init__(self, table: Outstanding) -> None:
        """`table`: where suspensions are until they are over."""
        self.suspends: list[Suspended] = []
        """Suspensions to be submitted."""
        self.cancels: list[Key] = []
        """Suspensions to be cancelled."""
        self.applied: list[int] = []
        """Numbers of suspensions that were resumed."""
        self.results: list[tuple[Key, pb.ContinueOutcome]] = []
        """Other answers, and answers for what has no number."""
        self.heartbeat_wanted = False
        """Whether to ask for a sign of life."""
        self._table = table
        self._frame_number = 0
        self._frames: dict[int, Sequence[Suspended]] = {}

    def __bool__(self) -> bool:
        return bool(self.suspends or self.applied or self.results or self.cancels or self.heartbeat_wanted)

    def begin_stream(self) -> int:
        """A sidecar is there: submit what is not delivered; it asks again for what it has no answer to.

        Returns:
            How many suspensions are submitted again.
        """
        self.suspends = self._table.undelivered()
        self.applied, self.results = [], []
        self._table.forget_numbers()
        self._frame_number = 0
        self._frames.clear()
        return len(self.suspends)

    def next_frame(self) -> tuple[SessionFrame, Sequence[Suspended]]:
        """Take out what fits into one message.

        Returns:
            The message, and the suspensions that it submits.
        """
        frame = SessionFrame()
        batch = self.suspends[:_MOST_ENTRIES_PER_MESSAGE]
        sent, encoded, left_us = self._table.to_send(batch)
        while len(batch) > 1 and sum(map(len, encoded)) > _MOST_BYTES_PER_MESSAGE:
            batch = batch[: len(batch) // 2]
            sent, encoded, left_us = self._table.to_send(batch)
        del self.suspends[: len(batch)]
        if sent:
            self._frame_number += 1
            self._frames[self._frame_number] = sent
            frame.frame_number = self._frame_number
            frame.suspends.extend(encoded)
            frame.left_us.extend(left_us)
        for key in self.cancels[:_MOST_ENTRIES_PER_MESSAGE]:
            fill_key(frame.cancels.add(), key[1:])
        del self.cancels[: len(frame.cancels)]
        for key, outcome in self.results[:_MOST_ENTRIES_PER_MESSAGE]:
            result = frame.results.add()
            fill_key(result.key, key[1:])
            result.outcome = outcome
        del self.results[: len(frame.results)]
        frame.applied.extend(self.applied)
        self.applied.clear()
        if self.heartbeat_wanted:
            self.heartbeat_wanted = False
            frame.heartbeat.nonce = 1
        return frame, sent

    def take_frame(self, frame_number: int) -> Sequence[Suspended]:
        """What a message of this stream submitted, in its order: the sidecar has answered for it. Only once."""
        return self._frames.pop(frame_number, ())

    def clear(self) -> None:
        """The transactions are gone: nothing is to be asked for them any more."""
        self.suspends.clear()
        self.cancels.clear()
        self._frames.clear()
