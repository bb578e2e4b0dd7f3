"""The name of one nap, as a tuple that dictionaries like, and its printed form."""

from __future__ import annotations

import re
from typing import NamedTuple

from sipnap.v1 import suspension_pb2 as pb

_FRONT_END_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1


Key = tuple[str, int, int, int, int]
"""A `SuspensionKey`, or the plain tuple that equals it and takes a third of the time to make."""


class SuspensionKey(NamedTuple):
    """Names one nap of one SIP transaction; equal keys are the same suspension.

    Its printed form, as `sipnap list` shows it and `sipnap cancel` takes it, is
    ``front_end_id/boot_epoch/transaction_index/transaction_label/nap_number``.
    """

    front_end_id: str
    """Name of the front end: 1 to 128 characters of ``[A-Za-z0-9._:-]``."""
    boot_epoch: int
    """Start of the front end's life, 0 to 2**64-1; grows with each restart."""
    transaction_index: int
    """Hash index of the transaction, 0 to 2**32-1 (tm: ``t_suspend``)."""
    transaction_label: int
    """Label of the transaction, 0 to 2**32-1 (tm: ``t_suspend``)."""
    nap_number: int
    """Which nap of the transaction, from 1."""

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> SuspensionKey:
        """Read the printed form.

        Raises:
            ValueError: The text is no key; the message says what is wrong with it.
        """
        parts = text.split("/")
        if len(parts) != 5:
            raise ValueError(
                f"{text!r} is not a key: expected "
                "front_end_id/boot_epoch/transaction_index/transaction_label/nap_number"
            )
        front_end_id, *numbers = parts
        if not is_front_end_id(front_end_id):
            raise ValueError(f"{front_end_id!r} is not a front end id: expected 1 to 128 of [A-Za-z0-9._:-]")
        for name, number, most in zip(cls._fields[1:], numbers, (_UINT64_MAX, *3 * (_UINT32_MAX,)), strict=True):
            if not (number.isascii() and number.isdigit() and int(number) <= most):
                raise ValueError(f"{number!r} is not a {name}: expected a number from 0 to {most}")
        return cls(front_end_id, *map(int, numbers))

    def to_message(self) -> pb.SuspensionKey:
        """The same key as the contract's message."""
        return pb.SuspensionKey(
            front_end_id=self.front_end_id,
            boot_epoch=self.boot_epoch,
            transaction_index=self.transaction_index,
            transaction_label=self.transaction_label,
            nap_number=self.nap_number,
        )


def key_of(message: pb.SuspensionKey) -> SuspensionKey:
    """The key that a message names, with nothing filled in."""
    return SuspensionKey(
        message.front_end_id,
        message.boot_epoch,
        message.transaction_index,
        message.transaction_label,
        message.nap_number,
    )


def fill_key(message: pb.SuspensionKey, key: tuple[int, int, int, int]) -> None:
    """Write the four numbers of a key into a message; the front end's id stays implied."""
    message.boot_epoch, message.transaction_index, message.transaction_label, message.nap_number = key


def is_front_end_id(text: str) -> bool:
    """Whether a text may name a front end: 1 to 128 characters of ``[A-Za-z0-9._:-]``."""
    return _FRONT_END_ID.match(text) is not None
