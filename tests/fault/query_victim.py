"""A host that is killed while it is asked for something: opens a data directory, and runs one query of one object."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from actors import LocalBackend, Operator
from actors.runtime.query import TIMEOUT_MAX_S
from tests.conformance.classes import Desk
from tests.fault.disk_victim import OBJECT, SETTINGS


async def main(data_dir: str, sql: str) -> None:
    backend = LocalBackend(Path(data_dir), [Desk], settings=SETTINGS)
    await Operator(backend).query(OBJECT, sql, timeout_s=TIMEOUT_MAX_S)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
