"""What a `Distribution` of the contract says: mean, quantiles, and what was added between two of them."""

from __future__ import annotations

from sipnap.client.outstanding import seconds_of
from sipnap.v1 import admin_service_pb2 as admin


def count_of(distribution: admin.Distribution) -> int:
    """How many were counted."""
    return sum(bucket.count for bucket in distribution.buckets)


def mean_seconds(distribution: admin.Distribution) -> float | None:
    """The mean; None of nothing."""
    count = count_of(distribution)
    return seconds_of(distribution.total) / count if count else None


def quantile_text(distribution: admin.Distribution, quantile: float) -> str:
    """The bound of the bucket that a quantile (0 to 1) falls into, for people: ``≤ 0.25 s``; a dash of nothing."""
    wanted = count_of(distribution) * quantile
    if not wanted:
        return "-"
    last_bound_seconds = 0.0
    for bucket in distribution.buckets:
        wanted -= bucket.count
        if wanted <= 0 and bucket.HasField("upper_bound"):
            return f"≤ {time_text(seconds_of(bucket.upper_bound))}"
        last_bound_seconds = seconds_of(bucket.upper_bound) or last_bound_seconds
    return f"> {time_text(last_bound_seconds)}"


def since(before: admin.Distribution, after: admin.Distribution) -> admin.Distribution:
    """What was counted between two states of one distribution."""
    difference = admin.Distribution()
    for was, is_now in zip(before.buckets, after.buckets, strict=False):
        bucket = difference.buckets.add()
        bucket.CopyFrom(is_now)
        bucket.count = max(0, is_now.count - was.count)
    nanoseconds = after.total.ToNanoseconds() - before.total.ToNanoseconds()
    difference.total.FromNanoseconds(max(0, nanoseconds))
    return difference


def time_text(seconds: float) -> str:
    """A short time for people, to three digits: ``0.4 ms``, ``12.3 ms``, ``2.5 s``."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
