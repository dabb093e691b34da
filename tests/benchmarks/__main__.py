"""`python -m tests.benchmarks [--quick] [--only SECTION] [--write FILE]`: measures, and shows a table of ratios.

Starts the service that it measures, on a free port of this machine and in a folder that goes with it. Each figure is
one of a pair, measured in turns within one run: compare the ratios, and not the figures of two machines or two days.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deployments.free_port import free_port
from tests.benchmarks import chat, embedding, flood, idle, in_process, limits, machine, over_http, over_stubs
from tests.benchmarks.report import Row, Skipped, line, table
from tests.integration.conftest import Service

CONFIG = Path(__file__).parent / "service" / "service.yaml"
PEERS_DIR = Path("build/peers").absolute()
KEY = "sk-bench"
HEAD = """# Benchmarks

What `make bench` has measured, in one run. Figures are medians, with the tenth and the ninetieth percentile of all
measurements; each was measured in turns with the one that it is compared to.

"""


SECTIONS = ("objects", "embedding", "stubs", "http", "chat", "limits", "flood")
WITHOUT_SERVICE = {"objects", "embedding"}


def measure(*, quick: bool, sections: Sequence[str], peers_dir: Path) -> Iterator[Row | Skipped]:
    if "objects" in sections:
        yield from in_process.measure(1_000 if quick else 10_000, 2 if quick else 5)
        yield from idle.measure(1_000 if quick else 10_000, 2 if quick else 12)
    if "embedding" in sections:
        yield from embedding.measure(*((20, 1) if quick else (400, 5)))
    if not set(sections) - WITHOUT_SERVICE:
        return
    sessions = 1_000 if quick else 10_000
    with tempfile.TemporaryDirectory(prefix="mobula-bench-") as folder:
        service = Service(Path(folder), free_port(), CONFIG)
        if "stubs" in sections:
            over_stubs.make_sessions(service.data_dir, sessions)
        service.start()
        try:
            # First: for a while after the others, what they have used goes to sleep.
            if "chat" in sections:
                yield from chat.measure(service.url, KEY, quick=quick)
            if "stubs" in sections:
                yield from over_stubs.measure(service, sessions, 1 if quick else 10)
            if "http" in sections:
                yield from over_http.measure(service, KEY, over_http.QUICK if quick else over_http.WHOLE, peers_dir)
            if "limits" in sections:
                yield from limits.accuracy(service, quick=quick)
            if "flood" in sections:
                yield from flood.honest_client(service, quick=quick)
        finally:
            service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer measurements, in three minutes")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this part alone; may be given repeatedly")
    parser.add_argument("--peers", type=Path, default=PEERS_DIR, metavar="FOLDER", help="where other runtimes are kept")
    parser.add_argument("--write", type=Path, metavar="FILE", help="writes the table there, as Markdown")
    options = parser.parse_args()
    on = machine.description()
    rows: list[Row | Skipped] = []
    for row in measure(quick=options.quick, sections=options.only or SECTIONS, peers_dir=options.peers):
        rows.append(row)
        print(line(row), file=sys.stderr, flush=True)
    print(table(rows))
    if options.write is not None:
        day = datetime.datetime.now(datetime.UTC).date()
        options.write.write_text(f"{HEAD}{table(rows)}\n\n{day}, {on}\n")


if __name__ == "__main__":
    main()
