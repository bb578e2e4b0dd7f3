"""The examples work as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sipnap.client import sync
from tests.acceptance.caller import Caller
from tests.acceptance.proxy import Proxy
from tests.acceptance.stack import Shim
from tests.support.dns_server import DnsServer
from tests.support.http_server import HttpServer
from tests.support.processes import Sidecar, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples" / "kamailio"


@pytest.mark.parametrize("script", ["kamailio.cfg", "kemi/kamailio.cfg"])
def test_an_example(script: str, tmp_path: Path) -> None:
    with (
        Sidecar() as sidecar,
        Proxy(tmp_path / "proxy", script=EXAMPLES / script, kemi_script=EXAMPLES / "kemi" / "script.py") as proxy,
        Shim(proxy.ports, sidecar.target) as shim,
        sync.Client(sidecar.target) as client,
        Caller(proxy.ports.sip) as caller,
    ):
        shim.wait_output("gate open")
        call = caller.invite("nobody")
        wait_until(lambda: list(client.list()), 5, "the call naps")
        (avp,) = next(client.list()).suspension.state.avps
        assert (avp.name, avp.text) == ("customer", b"caller")
        reply = call.final()
        assert (reply.code, reply.reason) == (404, "Nobody Here")
        assert reply.seconds - call.sent_seconds >= 4

        sidecar.kill()
        proxy.wait_output("gate shut by the shim", 3)
        call = caller.invite("nobody")
        reply = call.final()
        assert (reply.code, reply.reason) == (404, "Nobody Here")
        assert reply.seconds - call.sent_seconds < 1


@pytest.mark.parametrize("script", ["lookups.cfg", "kemi/kamailio.cfg"])
def test_the_example_of_lookups(script: str, tmp_path: Path) -> None:
    """It redirects as the web service says, or as ENUM does, and reports each call with a task."""
    with HttpServer(delay_seconds=0.01) as http, DnsServer() as dns:
        templates = tmp_path / "lookups.toml"
        templates.write_text((EXAMPLES / "lookups.toml").read_text().replace("127.0.0.1:8080", http.address))
        flags = [
            *("--group", "name=lookups,workers=64", "--group", "name=reports,workers=4"),
            *("--http-allow", http.address, "--http-templates", str(templates)),
            *("--enum-server", dns.address, "--enum-domain", dns.domain),
        ]
        with (
            Sidecar(*flags) as sidecar,
            Proxy(tmp_path / "proxy", script=EXAMPLES / script, kemi_script=EXAMPLES / "kemi" / "lookups.py") as proxy,
            Shim(proxy.ports, sidecar.target) as shim,
            Caller(proxy.ports.sip) as caller,
        ):
            shim.wait_output("gate open")
            for number, status, contact in (
                ("+49301234", 302, "<sip:+49301234@127.0.0.1>"),  # the web service: an even digit
                ("+49301239", 302, "<sip:49301239@127.0.0.1>"),  # the web service says no, ENUM has it
                ("+49301001", 404, ""),  # nobody knows it
                ("nobody", 404, ""),  # is no number
            ):
                reply = caller.invite(number).final()
                assert (reply.code, reply.header("Contact")) == (status, contact)
            # Kamailio's default level does not show the report itself; that the task was run, the sidecar counts.
            with sync.Client(sidecar.target) as client:
                wait_until(lambda: client.status().counters.applied == 8, 5, "four naps and four tasks are applied")
