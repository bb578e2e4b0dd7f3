"""The operation ``http``: ask a server, and take values from its answer.

aiohttp asks: the HTTP client that asyncio has had from the start and that is kept well, with connections pooled by
host, bounded buffers and a parser in C. What it would do by itself and without our bounds is switched off: redirects,
decompression, cookies, proxies from the environment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from importlib import metadata
from urllib.parse import urljoin

import aiohttp
import yarl

from sipnap.client.operations import OperationError, Value
from sipnap.sidecar.lookups.allowed_hosts import AllowedHosts
from sipnap.sidecar.lookups.http_answer import RETRY_SECONDS, read_body, values_of
from sipnap.sidecar.lookups.http_settings import template_of_arguments
from sipnap.sidecar.lookups.http_template import HttpRequest, HttpTemplate
from sipnap.sidecar.lookups.template import Origin, TemplateError, Values
from sipnap.v1 import suspension_pb2 as pb

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_KEEP_ALIVE_SECONDS = 15.0


class HttpLookup:
    """The operation. One for the process: it holds the connections."""

    def __init__(
        self,
        allowed: AllowedHosts,
        templates: Mapping[str, HttpTemplate],
        *,
        tls: ssl.SSLContext,
        connections_per_host: int = 64,
    ) -> None:
        """Check the templates; connect to nobody yet.

        Args:
            allowed: Who may be asked.
            templates: What the argument ``template`` may name.
            tls: How servers prove who they are.
            connections_per_host: Most connections to one host and port; who finds none free waits.

        Raises:
            TemplateError: A template leads to a host that is not allowed.
        """
        for template in templates.values():
            try:
                allowed.check(template.url.origin)
            except TemplateError as error:
                raise TemplateError(f"the template {template.name!r}: {error}") from error
        self._allowed = allowed
        self._templates = dict(templates)
        self._tls = tls
        self._connections_per_host = connections_per_host
        self._open_session: aiohttp.ClientSession | None = None

    async def __call__(self, arguments: Mapping[str, Value], state: pb.TransactionState) -> Mapping[str, Value]:
        """Ask, and take the values.

        Raises:
            OperationError: The arguments make no sense, or the server gave no answer that does.
        """
        template, given = self._template(arguments)
        if extra := given.keys() - template.places:
            raise OperationError("http_bad_arguments", f"the template has no place for the argument {min(extra)!r}")
        request = template.request(Values(given, state))
        origin = template.url.origin
        try:
            async with asyncio.timeout(template.total_seconds):
                return await self._ask(template, request, origin)
        except aiohttp.ClientSSLError as error:
            raise _error("http_tls", template, origin, f"TLS failed: {error}", retry=False) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            why = f"no connection within {template.connect_seconds:g} s"
            if isinstance(error, aiohttp.ClientConnectorError):
                why = f"no connection: {error.strerror or error}"
            raise _error("http_connect", template, origin, why, retry=True) from error
        except aiohttp.ClientResponseError as error:
            raise _error(
                "http_bad_answer", template, origin, f"that is no HTTP: {error.message}", retry=False
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            why = f"the connection ended early: {str(error) or type(error).__name__}"
            raise _error("http_disconnected", template, origin, why, retry=True) from error
        except TimeoutError as error:
            why = f"no answer within {template.total_seconds:g} s"
            raise _error("http_timeout", template, origin, why, retry=True) from error
        except OperationError as error:
            raise OperationError(
                error.code, f"{_whom(template, origin)}: {error.text}", retry_after_seconds=error.retry_after_seconds
            ) from error.__cause__

    async def close(self) -> None:
        """Close the connections."""
        if self._open_session is not None:
            await self._open_session.close()

    def _template(self, arguments: Mapping[str, Value]) -> tuple[HttpTemplate, Mapping[str, Value]]:
        if ("template" in arguments) == ("url" in arguments):
            raise OperationError("http_bad_arguments", "either the argument template or the argument url is needed")
        if "template" not in arguments:
            template, given = template_of_arguments(arguments)
            try:
                self._allowed.check(template.url.origin)
            except TemplateError as error:
                raise OperationError("http_not_allowed", str(error)) from error
            return template, given
        name = arguments["template"]
        key = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        found = self._templates.get(key)
        if found is None:
            raise OperationError("http_bad_template", f"there is no template {key[:64]!r}; see --http-templates")
        return found, {argument: value for argument, value in arguments.items() if argument != "template"}

    async def _ask(self, template: HttpTemplate, request: HttpRequest, origin: Origin) -> Mapping[str, Value]:
        url, headers = request.url, request.headers
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=template.connect_seconds)
        for hop in range(template.max_redirects + 1):
            async with self._session().request(
                request.method,
                yarl.URL(url, encoded=True),
                headers=headers,
                data=request.body,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                if response.status not in _REDIRECTS or not template.max_redirects:
                    body = await read_body(response, template.max_bytes)
                    return values_of(template, response.status, response.raw_headers, body)
                if hop < template.max_redirects:
                    target, url = self._next_hop(response, origin, url)
                    if target != origin:
                        headers = {}  # they may hold what proves who we are, and were written for the first host
                    origin = target
        raise OperationError("http_redirect", f"more than {template.max_redirects} redirects (setting max_redirects)")

    def _next_hop(self, response: aiohttp.ClientResponse, origin: Origin, url: str) -> tuple[Origin, str]:
        """Where a redirect leads, if that is allowed."""
        try:
            target = yarl.URL(urljoin(url, response.headers["Location"]))
            if target.scheme not in ("http", "https") or not target.raw_host or target.user or target.password:
                raise ValueError("it is no plain http or https URL")
            host = f"[{target.raw_host}]" if ":" in target.raw_host else target.raw_host
            next_origin = Origin.of(target.scheme, host, target.port)
        except (KeyError, ValueError) as error:
            raise OperationError("http_redirect", f"the redirect leads nowhere: {error!r}") from error
        if origin.scheme == "https" and next_origin.scheme == "http":
            raise OperationError("http_redirect", f"the redirect leads from TLS to plain text: {next_origin}")
        try:
            self._allowed.check(next_origin)
        except TemplateError as error:
            raise OperationError("http_not_allowed", f"the redirect leads astray: {error}") from error
        return next_origin, f"{next_origin}{target.raw_path_qs}"

    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            self._open_session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # the workers of the groups are the limit
                    limit_per_host=self._connections_per_host,
                    keepalive_timeout=_KEEP_ALIVE_SECONDS,
                    ssl=self._tls,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={
                    "User-Agent": f"sipnap/{metadata.version('sipnap')}",
                    # The answers are small: not worth the time, nor the risk.
                    "Accept-Encoding": "identity",
                },
                auto_decompress=False,
                trust_env=False,
            )
        return self._open_session


def _whom(template: HttpTemplate, origin: Origin) -> str:
    return f"{origin} (template {template.name})" if template.name != "url" else str(origin)


def _error(code: str, template: HttpTemplate, origin: Origin, why: str, *, retry: bool) -> OperationError:
    return OperationError(
        code, f"{_whom(template, origin)}: {why}", retry_after_seconds=RETRY_SECONDS if retry else None
    )
