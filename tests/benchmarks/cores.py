"""What does each part of the service take of a core for one request, and what do more of the parts come to?

On a machine with few cores the parts share them, so that more of them show nothing. What one request costs each part
says what as many cores would do: parts of a kind share the requests, and the slowest kind sets the pace. That is a
model: it leaves out what the parts wait for each other, and what the client takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psutil

from tests.benchmarks import wrk
from tests.benchmarks.report import Row, figure
from tests.benchmarks.wrk import Work
from tests.integration.conftest import Service

#: The kinds of processes that a check goes through, by names in their command lines.
KINDS: Final = {
    "the ingress": "ray::ServeReplica:default:Ingress",
    "the hosts": "ray::ObjectHost",
    "HAProxy": "haproxy -db",
}
#: Of a kind, but HAProxy, which is one process with as many threads as the machine has cores.
NUMBERS: Final = (2, 4, 8)


def checks(service: Service, key: str, work: Work, run_s: int, runs: int) -> Iterator[Row]:
    """Seconds of a core that a check takes in each kind of process, and checks a second with more of them."""
    took_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(runs):
        before_s = {kind: _cpu_s(service, name) for kind, name in KINDS.items()}
        requests = wrk.run(service.url, key, work, run_s).requests
        for kind, name in KINDS.items():
            took_s[kind].append((_cpu_s(service, name) - before_s[kind]) / requests)
    for kind, samples in took_s.items():
        yield figure(f"layer: what a check takes of a core in {kind}", samples, unit="µs")
    for number in NUMBERS:
        rates = [
            number / max(ingress_s, hosts_s, haproxy_s)
            for ingress_s, hosts_s, haproxy_s in zip(*took_s.values(), strict=True)
        ]
        yield figure(
            f"by that, with {number} hosts and {number} ingress replicas on cores of their own", rates, unit="/s"
        )


def _cpu_s(service: Service, name: str) -> float:
    total_s = 0.0
    for process in service.processes(name):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total_s += times.user + times.system
    return total_s
