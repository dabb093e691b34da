"""A host is killed while a query of its object runs: is the file its successor's?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.conformance.classes import Desk
from tests.conftest import REPOSITORY
from tests.fault.disk_victim import OBJECT, SETTINGS, desk_in
from tests.readers import reader_of

TEXT = "a" * 2_000_000
#: One step of SQLite's machine, which takes it minutes.
HOSTILE = "SELECT instr(text, substr(text, 1, length(text) / 2) || 'b') FROM line"
#: Well below what the query itself may take.
GONE_WITHIN_S = 2.0


@pytest.mark.parametrize("logged", [True, False])
async def test_a_killed_host_leaves_no_query_that_has_the_file(data_dir: Path, logged: bool) -> None:
    path = OBJECT.path(data_dir / "objects", SETTINGS.slots)
    log = path.with_name(path.name + "-wal")
    backend = desk_in(data_dir)
    await backend.namespace(Desk).get(OBJECT.tenant, OBJECT.name).add(TEXT)
    before, in_log = path.read_bytes(), log.read_bytes()
    backend.close()
    if logged:  # as a crash leaves it; whoever reads it has the file locked
        path.write_bytes(before)
        log.write_bytes(in_log)
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fault.query_victim",
        str(data_dir),
        HOSTILE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        left = await reader_of(path, psutil.Process(host.pid))
    finally:
        host.kill()
        await host.wait()
    await asyncio.to_thread(left.wait, GONE_WITHIN_S)
    with contextlib.closing(desk_in(data_dir)) as successor:
        assert await successor.namespace(Desk).get(OBJECT.tenant, OBJECT.name).lines() == [TEXT]
