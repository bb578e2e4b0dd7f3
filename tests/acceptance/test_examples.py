"""The examples work as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sipnap.client import sync
from tests.acceptance.caller import Caller
from tests.acceptance.proxy import Proxy
from tests.acceptance.stack import Shim
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
