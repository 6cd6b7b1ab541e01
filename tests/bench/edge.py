"""The SIP edge beside Kamailio: server CPU per REGISTER, MESSAGE and call, memory per registered connection."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gevent

from tests.bench.servers import Kamailio, Server, Wsgate, stay_on_the_load_core
from tests.bench.sip_load import OPERATIONS, Backend, Browser, run

WARM_UP = 500


def measure(
    kind: type[Server], directory: Path, connections: int, total: int, at_once: int
) -> tuple[float, dict[str, float]]:
    """Memory in KiB per registered connection, and microseconds of server CPU for each operation."""
    backend = Backend()
    server = kind(directory, backend.port)
    browsers = []
    try:
        empty = server.pss_kib()
        browsers = [Browser(server.ws) for _ in range(connections)]
        run(browsers, Browser.register, connections, at_once)
        memory = (server.pss_kib() - empty) / connections
        found = {}
        for name, operation in OPERATIONS.items():
            run(browsers, operation, WARM_UP, at_once)
            before = server.cpu_seconds()
            run(browsers, operation, total, at_once)
            found[name] = (server.cpu_seconds() - before) / total * 1e6
        return memory, found
    finally:
        for browser in browsers:
            browser.close()
        server.stop()
        backend.close()


def main() -> None:
    """In turn, several times; the best run of each counts, for noise only adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--operations", type=int, default=3000, help="of each kind and run")
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    stay_on_the_load_core()
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="wsgate-bench") as name:
        for number in range(options.runs):
            for kind in (Wsgate, Kamailio):
                directory = Path(name) / f"{kind.name}{number}"
                memory, found = measure(kind, directory, options.connections, options.operations, options.at_once)
                seen = best.setdefault(kind.name, {})
                for what, value in {"KiB per connection": memory, **found}.items():
                    seen[what] = min(value, seen.get(what, value))
                gevent.sleep(0)
    print(f"{options.connections} connections, {options.at_once} operations open, best of {options.runs} runs")
    print(f"{'':20} {'wsgate':>10} {'kamailio':>10} {'ratio':>7}")
    for what, ours in best["wsgate"].items():
        theirs = best["kamailio"][what]
        print(f"{what:20} {ours:10.1f} {theirs:10.1f} {ours / theirs if theirs else 0:7.2f}")


if __name__ == "__main__":
    main()
