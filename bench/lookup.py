"""The same slow HTTP lookup in a real Kamailio: by its module http_async_client, and by sipnap's operation http.

Each call asks for a number of its own and is answered 404 only if the answer is about that number. Debian does not
package the module; scripts/build-http-async-client builds it from Debian's source, once.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import load, results, search
from bench.load import ROOT, Step, Way
from tests.support.http_server import HttpServer

SUMMARY = "an HTTP lookup: Kamailio's http_async_client beside the operation http"
SHORT = ["--rates", "100", "--repeats", "1", "--seconds", "2"]
LONG = ["--rates", "300", "1000", "--repeats", "3", "--seconds", "4", "--find-capacity", "--start", "1000"]

WAYS = {
    way.name: way
    for way in (
        Way("http_async_client", "`http_async_client`", "lookup.cfg", {"PATH_HTTP_ASYNC": ""}),
        Way("sipnap_http", "sipnap, operation `http`", "lookup.cfg", {"PATH_SIPNAP": ""}),
    )
}
"""Both of them."""

_MODULE = ROOT / "build" / "kamailio" / "http_async_client.so"
_PACKAGED = Path("/usr/lib/x86_64-linux-gnu/kamailio/modules/http_async_client.so")
_FIRST_PROBE = 900_000_000  # lookup.cfg knows a probe by it
_COLUMNS = (
    "reached", "proxy_us", "shim_us", "sidecar_us", "host_us", "caller_us", "late_p50_ms", "late_p90_ms",
    "late_p99_ms", "late_p999_ms", "failed", "retransmissions",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to compare")
    parser.add_argument("--rates", nargs="*", type=int, default=[300], help="calls/s, one step each")
    parser.add_argument("--seconds", type=float, default=5.0, help="for how long each step places calls")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured; medians are shown")
    parser.add_argument("--lookup-ms", type=int, default=200, help="how long the HTTP server takes")
    parser.add_argument("--workers", type=int, default=2000, help="of the sidecar's group; and most HTTP connections")
    parser.add_argument("--journal", default="sqlite", choices=["memory", "sqlite", "redis"], help="the sidecar's")
    search.configure(parser, start=1500)
    results.add_directory_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    machine = results.machine()
    module = _module()
    names = [name for name in arguments.ways if name != "http_async_client" or module is not None]
    raw: list[dict[str, Any]] = []
    sections: dict[str, list[dict[str, Any]]] = {"rows": [], "capacity": [], "raw": raw}

    def measured(name: str, rate: int) -> dict[str, Any]:
        found: dict[str, Any] = {"way": name, "rate": rate, **_measure(name, rate, module, arguments)}
        print(
            f"{name} {rate}/s: proxy {found['proxy_us']:.0f}, host {found['host_us']:.0f} µs/call; beyond the lookup "
            f"p50 {found['late_p50_ms']:.1f}, p99 {found['late_p99_ms']:.1f} ms; {found['failed']:.0f} failed, "
            f"{found['retransmissions']:.0f} retransmissions{'' if load.is_clean(found) else ': NOT CLEAN'}",
            flush=True,
        )
        return found

    for rate in arguments.rates:
        for turn in range(arguments.repeats):
            raw += [{"what": "rate", "turn": turn, **measured(name, rate)} for name in names]
    sections["rows"] = [
        {"way": name, "rate": rate, **results.medians(group, _COLUMNS)}
        for rate in arguments.rates
        for name in names
        if (group := [row for row in raw if row["way"] == name and row["rate"] == rate])
    ]
    if sections["rows"]:
        print(results.table(sections["rows"]))
    if arguments.find_capacity:
        sections["capacity"] = search.find(names, arguments, measured, raw)
        print(results.table(sections["capacity"]))
    print(results.keep("lookup", arguments, machine, sections))
    lines = {
        WAYS[name].title.replace("`", ""): [
            (row["rate"], row["proxy_us"]) for row in sections["rows"] if row["way"] == name
        ]
        for name in names
    }
    axes = ("calls/s", "µs of the proxy's CPU per call")
    print(results.plot(arguments.results, "lookup", f"An HTTP lookup of {arguments.lookup_ms} ms", axes, lines))
    return 0


def _module() -> Path | None:
    """Where Kamailio's module is; built if need be."""
    if _PACKAGED.exists():
        return _PACKAGED
    if not _MODULE.exists():
        built = subprocess.run([ROOT / "scripts" / "build-http-async-client", _MODULE], timeout=300, check=False)
        if built.returncode:
            print("http_async_client is left out: it is neither packaged nor could it be built")
            return None
    return _MODULE


def _measure(name: str, rate: int, module: Path | None, arguments: argparse.Namespace) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory(prefix="sipnap-bench-") as directory,
        HttpServer(delay_seconds=arguments.lookup_ms / 1000) as server,
    ):
        templates = Path(directory) / "templates.toml"
        templates.write_text(
            f'[number]\nurl = "{server.url}/number/{{number}}"\npick = {{ number = "number" }}\ntotal_seconds = 5\n'
        )
        step = Step(
            WAYS[name], rate, arguments.seconds, nap_ms=arguments.lookup_ms, journal=arguments.journal,
            defines={"HTTP_PORT": server.port}, user="[call_number]", first_probe=_FIRST_PROBE,
            sidecar_flags=[
                "--group", f"name=lookups,workers={arguments.workers},queue=10000", "--http-allow", server.address,
                "--http-templates", str(templates), "--http-connections", str(arguments.workers),
            ],
        )  # fmt: skip
        if module is not None:
            step = replace(step, defines={**step.defines, "HTTP_MODULE": f'"{module}"'})
        before = server.cpu_seconds()
        found = load.measure(step)
        return {**found, "server_us": (server.cpu_seconds() - before) / found["calls"] * 1e6}
