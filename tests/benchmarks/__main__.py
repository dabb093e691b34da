"""`python -m tests.benchmarks [--quick] [--only SECTION] [--write FILE]`: measures, and shows a table of ratios.

Starts the service that it measures, on a free port of this machine and in a folder that goes with it. Each figure is
one of a pair, measured in turns within one run: compare the ratios, and not the figures of two machines or two days.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deployments.free_port import free_port
from tests.benchmarks import chat, flood, in_process, machine, over_http, over_stubs
from tests.benchmarks.report import Row, Skipped, table
from tests.integration.conftest import Service

CONFIG = Path(__file__).parent / "service" / "service.yaml"
PEERS_DIR = Path("build/peers").absolute()
KEY = "sk-bench"
HEAD = """# Benchmarks

What `make bench` has measured, in one run. Figures are medians, with the tenth and the ninetieth percentile of all
measurements; each was measured in turns with the one that it is compared to.

"""


SECTIONS = ("objects", "stubs", "http", "chat", "flood")


def measure(*, quick: bool, sections: Sequence[str], peers_dir: Path) -> list[Row | Skipped]:
    rows: list[Row | Skipped] = []
    if "objects" in sections:
        rows += in_process.measure(2_000 if quick else 10_000, 3 if quick else 5)
    if sections == ["objects"]:
        return rows
    sessions = 2_000 if quick else 10_000
    with tempfile.TemporaryDirectory(prefix="mobula-bench-") as folder:
        service = Service(Path(folder), free_port(), CONFIG)
        if "stubs" in sections:
            over_stubs.make_sessions(service.data_dir, sessions)
        service.start()
        try:
            if "stubs" in sections:
                rows += over_stubs.measure(service, sessions, 3 if quick else 10)
            if "http" in sections:
                effort = over_http.QUICK if quick else over_http.WHOLE
                rows += over_http.measure(service, KEY, effort, peers_dir)
            if "chat" in sections:
                rows += chat.first_token(service.url, KEY, 20 if quick else 60)
                rows += chat.throughput(service.url, KEY, 3 if quick else 10)
            if "flood" in sections:
                rows += flood.honest_client(service, quick=quick)
        finally:
            service.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer measurements, in under 3 minutes")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this part alone; may be given repeatedly")
    parser.add_argument("--peers", type=Path, default=PEERS_DIR, metavar="FOLDER", help="where other runtimes are kept")
    parser.add_argument("--write", type=Path, metavar="FILE", help="writes the table there, as Markdown")
    options = parser.parse_args()
    on = machine.description()
    rows = measure(quick=options.quick, sections=options.only or SECTIONS, peers_dir=options.peers)
    print(table(rows))
    if options.write is not None:
        day = datetime.datetime.now(datetime.UTC).date()
        options.write.write_text(f"{HEAD}{table(rows)}\n\n{day}, {on}\n")


if __name__ == "__main__":
    main()
