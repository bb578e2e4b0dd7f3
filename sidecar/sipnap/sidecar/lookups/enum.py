"""The operation ``enum``: from a telephone number to SIP URIs by way of DNS (RFC 6116).

dnspython asks: it is the resolver library that Python has, kept for twenty years, with timeouts, several servers, TCP
for what UDP truncates, and asyncio.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from sipnap.client.operations import OperationError, Value
from sipnap.sidecar.lookups.ere import Budget, TooCostly
from sipnap.sidecar.lookups.naptr import BadRecord, Naptr, ServiceFilter, name_of, number_of, preferred, uri_of
from sipnap.v1 import suspension_pb2 as pb

DEFAULT_DOMAIN = "e164.arpa"
"""The tree of RFC 6116."""

DEFAULT_SERVICE = "E2U+sip"
"""What is asked for unless the script says otherwise."""

MOST_QUERIES = 5
"""How many names one lookup asks for: the number's own and those that it leads to."""

MOST_URIS = 16
"""How many URIs one lookup gives."""

MOST_RECORDS = 64
"""How many records of one name are looked at."""

MOST_STEPS = 30_000
"""What the regular expressions of one lookup may cost: some 10 ms."""

_TRY_SECONDS = 1.0
_RETRY_SECONDS = 0.2
_EDNS_BYTES = 1232

log = logging.getLogger("sipnap.lookups")


class EnumLookup:
    """The operation. One for the process."""

    def __init__(
        self, domains: Sequence[str] = (DEFAULT_DOMAIN,), servers: Sequence[tuple[str, int]] = (), seconds: float = 3.0
    ) -> None:
        """Prepare the resolver.

        Args:
            domains: What the argument ``domain`` may be; the first is the default.
            servers: Addresses and ports of name servers; none: those of the machine (``/etc/resolv.conf``).
            seconds: Most that one lookup takes.

        Raises:
            ValueError: A domain is none, a server's address is no address, or the machine names no name server.
        """
        for domain in domains:
            try:
                dns.name.from_text(domain)
            except dns.exception.DNSException as error:
                raise ValueError(f"{domain!r} is no domain: {error}") from error
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not servers)
            if servers:
                self._resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
        except (dns.exception.DNSException, ValueError) as error:
            raise ValueError(f"no name server can be used: {error}") from error
        self._resolver.use_edns(0, 0, _EDNS_BYTES)
        self._resolver.timeout = min(_TRY_SECONDS, seconds)
        self._domains = {domain.strip(".").lower(): domain for domain in domains}
        self._default_domain = domains[0]
        self._seconds = seconds

    async def __call__(self, arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
        """Look a number up.

        Raises:
            OperationError: The arguments make no sense, or DNS did not answer.
        """
        texts = {name: _text(name, value) for name, value in arguments.items()}
        try:
            number = number_of(texts.pop("number", b""))
        except ValueError as error:
            raise OperationError(
                "enum_bad_number", f"the argument number: {error}; {{s.urlencode.param}} keeps the + in a script"
            ) from error
        wanted = self._wanted(texts.pop("service", DEFAULT_SERVICE.encode()))
        domain = self._domain(texts.pop("domain", self._default_domain.encode()))
        if texts:
            raise OperationError(
                "enum_bad_arguments", f"unknown argument {min(texts)!r}; known: number, service, domain"
            )
        search = _Search(self._resolver, number, wanted, self._seconds)
        uris = await search.run(name_of(number, domain))
        if not uris:
            return {"found": False}
        return {"found": True, "uri": uris[0], "uris": list(uris)}

    def _wanted(self, service: bytes) -> ServiceFilter:
        try:
            return ServiceFilter.parse(service.decode("ascii", "replace"))
        except ValueError as error:
            raise OperationError("enum_bad_arguments", f"the argument service: {error}") from error

    def _domain(self, domain: bytes) -> str:
        found = self._domains.get(domain.decode("ascii", "replace").strip(".").lower())
        if found is None:
            raise OperationError("enum_bad_arguments", "the argument domain is none of those given with --enum-domain")
        return found


class _Search:
    """One lookup: the names that were asked for, and what they gave."""

    def __init__(
        self, resolver: dns.asyncresolver.Resolver, number: str, wanted: ServiceFilter, seconds: float
    ) -> None:
        self._resolver = resolver
        self._number = number
        self._wanted = wanted
        self._seconds = seconds
        self._asked: set[str] = set()
        self._budget = Budget(MOST_STEPS)
        self._uris: list[str] = []

    async def run(self, name: str) -> list[str]:
        failure: OperationError | None = None
        try:
            async with asyncio.timeout(self._seconds):
                failure = await self._follow(name)
        except TimeoutError:
            failure = OperationError(
                "enum_timeout", f"no answer from DNS within {self._seconds:g} s", retry_after_seconds=_RETRY_SECONDS
            )
        if failure is not None and not self._uris:
            raise failure
        return self._uris

    async def _follow(self, name: str) -> OperationError | None:
        """Take what the records of a name give, most preferred first; the error if DNS failed on the way."""
        if name.lower() in self._asked or len(self._asked) >= MOST_QUERIES:
            return None
        self._asked.add(name.lower())
        try:
            records = await self._records(name)
        except OperationError as error:
            return error
        failure: OperationError | None = None
        chosen_order: int | None = None
        for record in preferred(records)[:MOST_RECORDS]:
            # Once a record of one order gave something, those of another are not considered (RFC 3403 4.1).
            if len(self._uris) >= MOST_URIS or (chosen_order is not None and record.order != chosen_order):
                break
            count = len(self._uris)
            if record.leads_to is not None:
                failure = await self._follow(record.leads_to) or failure
            elif record.is_terminal and self._wanted.takes(record.services):
                self._add(record)
            if len(self._uris) > count:
                chosen_order = record.order
        return failure

    def _add(self, record: Naptr) -> None:
        try:
            uri = uri_of(record, self._number, self._budget)
            if not self._wanted.fits(uri):
                raise BadRecord("its URI is not of a scheme that the service has")
        except (BadRecord, TooCostly) as error:
            log.debug("a NAPTR record is passed over number=%s record=%s why=%s", self._number, record, error)
            return
        if uri not in self._uris:
            self._uris.append(uri)

    async def _records(self, name: str) -> list[Naptr]:
        try:
            answer = await self._resolver.resolve(
                name, dns.rdatatype.NAPTR, search=False, lifetime=self._seconds, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN:
            return []
        except dns.exception.Timeout as error:
            raise OperationError(
                "enum_timeout", f"no answer from DNS within {self._seconds:g} s", retry_after_seconds=_RETRY_SECONDS
            ) from error
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise OperationError(
                "enum_server_failure",
                f"DNS failed: {type(error).__name__}: {error}",
                retry_after_seconds=_RETRY_SECONDS,
            ) from error
        return [
            Naptr(
                order=rdata.order,
                preference=rdata.preference,
                flags=rdata.flags.decode("latin-1"),
                services=rdata.service.decode("latin-1"),
                regexp=rdata.regexp,
                replacement=rdata.replacement.to_text(),
            )
            for rdata in answer.rrset or ()
        ]


def _text(name: str, value: Value) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise OperationError("enum_bad_arguments", f"the argument {name} has to be text")
