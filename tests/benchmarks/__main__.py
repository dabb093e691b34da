"""`python -m tests.benchmarks [--quick] [--write docs/benchmarks.md]`: measures, and shows a table of ratios.

Starts the service that it measures, on a free port of this machine and in a folder that goes with it. Each figure is
one of a pair, measured in turns within one run: compare the ratios, and not the figures of two machines or two days.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path

from deployments.free_port import free_port
from tests.benchmarks import chat, flood, machine
from tests.benchmarks.report import Row, table
from tests.integration.conftest import Service

CONFIG = Path(__file__).parent / "service" / "service.yaml"
KEY = "sk-bench"
HEAD = """# Benchmarks

What `make bench` has measured, in one run. Figures are medians, with the tenth and the ninetieth percentile of all
measurements; each was measured in turns with the one that it is compared to.

"""


def measure(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mobula-bench-") as folder:
        service = Service(Path(folder), free_port(), CONFIG)
        service.start()
        try:
            rows += chat.first_token(service.url, KEY, 20 if quick else 60)
            rows += chat.throughput(service.url, KEY, 3 if quick else 10)
            rows += flood.honest_client(service, quick=quick)
        finally:
            service.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer measurements, in under 3 minutes")
    parser.add_argument("--write", type=Path, metavar="FILE", help="writes the table there, as Markdown")
    options = parser.parse_args()
    on = machine.description()
    rows = measure(quick=options.quick)
    print(table(rows))
    if options.write is not None:
        day = datetime.datetime.now(datetime.UTC).date()
        options.write.write_text(f"{HEAD}{table(rows)}\n\n{day}, {on}\n")


if __name__ == "__main__":
    main()
