"""The printed form of a key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipnap.client.keys import SuspensionKey, key_of

keys = st.builds(
    SuspensionKey,
    st.text("abcXYZ09._:-", min_size=1, max_size=128),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)


@given(keys)
def test_a_key_survives_printing_and_the_wire(key: SuspensionKey) -> None:
    assert SuspensionKey.parse(str(key)) == key
    assert key_of(key.to_message()) == key


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kamailio/1/2/3", "is not a key"),
        ("kama ilio/1/2/3/1", "not a front end id"),
        ("/1/2/3/1", "not a front end id"),
        ("k/1/2/3/x", "'x' is not a nap_number"),
        ("k/1/4294967296/3/1", "not a transaction_index"),
        ("k/1/²/3/1", "not a transaction_index"),
        ("k/-1/2/3/1", "not a boot_epoch"),
    ],
)
def test_what_is_no_key_is_told_so(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SuspensionKey.parse(text)
