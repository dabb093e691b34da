"""Is a query ended in time, whatever it is in the middle of, and is nobody but who asked held up by it?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from actors import LocalBackend, Operator
from actors.runtime import InvalidArgument, ObjectFailed, ObjectOverloaded, ObjectReset, child, query
from actors.runtime.child import GRACE_S
from tests.objects import Notebook
from tests.readers import reader_of
from tests.unit.inspection.support import SETTINGS, lines, notebook, path_of, write

LIMIT_S = 0.2
#: For a busy machine to start a process, and to be rid of it. What is ended here would take minutes at least.
SLACK_S = 3.0
TEXT = "a" * 2_000_000
# Each is one step of SQLite's machine.
ONE_STEP = {
    "like": "text LIKE '%' || substr(text, 1, 40000) || 'b'",
    "glob": "text GLOB '*' || substr(text, 1, 40000) || 'b'",
    "instr": "instr(text, substr(text, 1, length(text) / 2) || 'b')",
    "replace": "length(replace(text, substr(text, 1, length(text) / 2) || 'b', ''))",
}
MANY = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000)"
# SQLite tells of the memory that it lacks when it has gone through all rows.
JOINS = f"{MANY} SELECT length(group_concat(text, '')) FROM line, n"
JOINS_FEW = JOINS.replace("300000", "100")


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("sql", ONE_STEP.values(), ids=ONE_STEP.keys())
async def test_a_function_that_takes_for_ever_is_ended_in_time_and_the_object_goes_on(
    backend: LocalBackend, operator: Operator, sql: str, resident: bool
) -> None:
    await write(backend, notebook("one"), text=TEXT, asleep=not resident)
    asked_s = time.monotonic()
    with pytest.raises(InvalidArgument, match=r"took longer than 0\.2 s") as refused:
        await operator.query(notebook("one"), f"SELECT {sql} FROM line", timeout_s=LIMIT_S)
    assert time.monotonic() - asked_s < LIMIT_S + GRACE_S + SLACK_S
    assert refused.value.field == "sql"
    assert psutil.Process().children() == []
    assert await lines(backend, notebook("one")) == [TEXT]


async def test_what_puts_much_together_is_ended_by_its_memory_or_its_time(
    backend: LocalBackend, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(backend, notebook("one"), text=TEXT)
    with pytest.raises(InvalidArgument, match=r"took (longer|more memory)"):
        await operator.query(notebook("one"), JOINS, timeout_s=LIMIT_S)
    monkeypatch.setattr(query, "MEMORY_BYTES_MAX", 64 * 1024 * 1024)
    with pytest.raises(InvalidArgument, match="took more memory than 64 MiB") as refused:
        await operator.query(notebook("one"), JOINS_FEW, timeout_s=5.0)
    assert refused.value.field == "sql"
    assert await lines(backend, notebook("one")) == [TEXT]


async def test_what_is_sorted_takes_no_file(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"))
    sorting = f"{MANY} SELECT i, hex(i) || 'x' AS x FROM n ORDER BY x"
    result = await operator.query(notebook("one"), sorting, rows_max=1, timeout_s=5.0)
    assert result.rows == ((100_000, "313030303030x"),)


async def test_calls_that_wait_for_a_query_run_when_it_is_ended(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"), text=TEXT, asleep=False)
    asking = asyncio.create_task(
        operator.query(notebook("one"), f"SELECT {ONE_STEP['like']} FROM line", timeout_s=LIMIT_S)
    )
    while backend.host.activation_of(notebook("one")) is None:
        await asyncio.sleep(0)
    assert len(await lines(backend, notebook("one"))) == 1
    with pytest.raises(InvalidArgument, match="took longer"):
        await asking


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_neither_a_host_that_stops_nor_who_asked_waits_for_a_query(data_dir: Path, end: str) -> None:
    backend = LocalBackend(data_dir, [Notebook], settings=SETTINGS)
    await write(backend, notebook("one"), text=TEXT, asleep=False)
    asking = asyncio.create_task(
        Operator(backend).query(notebook("one"), f"SELECT {ONE_STEP['like']} FROM line", timeout_s=5.0)
    )
    process = await reader_of(path_of(data_dir, notebook("one")), psutil.Process())
    stopped_s = time.monotonic()
    stop: Callable[[], object] = backend.close if end == "close" else asking.cancel
    stop()
    with pytest.raises((ObjectReset, ObjectOverloaded, asyncio.CancelledError)):
        await asking
    assert time.monotonic() - stopped_s < 2.0
    assert not process.is_running()
    backend.close()


async def test_a_process_that_can_not_be_started_is_an_overload(
    backend: LocalBackend, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(backend, notebook("one"))
    with monkeypatch.context() as patch:
        patch.setattr("actors.runtime.child.sys.executable", "/nowhere/python")
        with pytest.raises(ObjectOverloaded, match="no process"):
            await operator.query(notebook("one"), "SELECT 1")
    with monkeypatch.context() as patch:
        patch.setattr(child, "START_MAX_S", 0.0)
        with pytest.raises(ObjectOverloaded, match="no process"):
            await operator.query(notebook("one"), "SELECT 1")
    assert (await operator.query(notebook("one"), "SELECT 1")).rows == ((1,),)


async def test_a_database_that_is_damaged_says_so(backend: LocalBackend, operator: Operator, data_dir: Path) -> None:
    path = path_of(data_dir, notebook("one"))
    await write(backend, notebook("one"), text=TEXT)
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 100] = b"\xff" * 100
    path.write_bytes(data)
    with pytest.raises(ObjectFailed, match="malformed"):
        await operator.query(notebook("one"), "SELECT * FROM line")
    path.write_bytes(b"scrap" * 2000)
    with pytest.raises(ObjectReset, match="open failed"):
        await operator.query(notebook("one"), "SELECT 1")
