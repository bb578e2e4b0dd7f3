"""The redis library as it is used here, nothing tried twice unasked, nothing without a bound; what its errors mean."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis, Sentinel
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from sipnap.sidecar.journal.redis_address import RedisAddress

Client = Redis | RedisCluster

FAILURES = (RedisError, OSError, TimeoutError)
"""What the library may raise."""

_HINTS: tuple[tuple[str, str], ...] = (
    # Words of which the error's text or class has one in it, and what to do. The first that fits.
    ("OOM OutOfMemory", "is out of memory: raise its maxmemory, or give sipnap a Redis of its own"),
    ("READONLY ReadOnly", "is a read-only replica: name the primary, or its Sentinels (redis+sentinel://…)"),
    ("NOREPLICAS", "has too few replicas to write (min-replicas-to-write): bring them back or lower it"),
    ("MISCONF", "cannot save to its disk and so refuses writes: free some space there, or look into its log"),
    ("LOADING BusyLoading", "is loading its data after a start: wait"),
    ("MASTERDOWN MasterDown", "is a replica without its primary: name the primary"),
    ("CLUSTERDOWN ClusterDown", "is a cluster that is not complete: look at CLUSTER INFO"),
    ("MOVED Moved", "is part of a cluster: use redis+cluster://"),
    ("RedisClusterException", "is no cluster, or none of its nodes answers: check the address, or use redis://"),
    ("WRONGPASS", "does not accept user and password: check the URL"),
    ("NOAUTH AuthenticationError unauthenticated", "asks for a password: redis://USER:PASSWORD@HOST:PORT/DB"),
    (
        "NOPERM NoPermission",
        "lets this user not do it: it needs EVAL, HSCAN, HKEYS, GET, SET, the lists and the streams, on sipnap:*",
    ),
    ("MasterNotFound", "is unknown to the Sentinels: check their addresses and the service's name"),
    ("Timeout", "does not answer in time: is it stopped, overloaded, or cut off?"),
    ("ConnectionError OSError", "cannot be reached: is it running there?"),
)


def open_client(address: RedisAddress, timeout_seconds: float) -> Client:
    """A client; it connects when it is used.

    Raises:
        ValueError: The library does not like what follows the question mark.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
    }
    if address.kind == "cluster":
        nodes = [ClusterNode(*host) for host in address.hosts]
        return RedisCluster.from_url(address.url, startup_nodes=nodes, **options)
    if address.kind == "sentinel":
        parsed: dict[str, Any] = dict(parse_url(address.url))
        del parsed["host"], parsed["port"]
        own = {name: parsed.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        if parsed.pop("connection_class", None) is SSLConnection:
            parsed["ssl"] = True
            own |= {name: value for name, value in parsed.items() if name.startswith("ssl")}
        sentinels: Any = Sentinel(address.hosts, sentinel_kwargs=options | own, **options | parsed)  # type: ignore[no-untyped-call]
        primary: Redis = sentinels.master_for(address.service)
        return primary
    return Redis.from_url(address.url, **options)


def explain(name: str, error: BaseException) -> str:
    """One line: which journal, what is wrong, what to do, and what the library said."""
    said = str(error)
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__ if kind is not Exception)
    hint = next((hint for words, hint in _HINTS if any(word in said or word in kinds for word in words.split())), "")
    return f"journal {name}: {hint or 'failed'} ({said or type(error).__name__})"


def is_disconnection(error: BaseException | None) -> bool:
    """Whether a connection was lost (and not: a Redis that stays silent); trying once more may help."""
    return isinstance(error, RedisConnectionError) and not isinstance(error, BusyLoadingError)
