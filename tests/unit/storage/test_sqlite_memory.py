"""Do open databases take less memory once a process has said that it opens many?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

#: In processes of their own: SQLite asks once.
PROGRAM = """
import sys
from pathlib import Path

import psutil

from actors import KeyValue
from actors.runtime import sqlite, sqlite_memory
from actors.runtime.schema import Schema

if sys.argv[2] == "little":
    assert sqlite_memory.take_little()
template = Schema(KeyValue.migrations).template
paths = [Path(sys.argv[1]) / f"{number}.sqlite" for number in range(110)]
for path in paths:
    sqlite.create(path, template)
open_ones = [sqlite.connect(path) for path in paths[:10]]
before = psutil.Process().memory_full_info().uss
open_ones += [sqlite.connect(path) for path in paths[10:]]
print(psutil.Process().memory_full_info().uss - before)
"""
#: Of what a process has set before, it is the memory alone that it may change.
LIMITED = """
import sys
from pathlib import Path

from actors.runtime import sqlite, sqlite_memory
from actors.runtime.connection import ROW_BYTES_MAX
from actors.runtime.schema import Schema

path = Path(sys.argv[1]) / "one.sqlite"
sqlite.create(path, Schema(None).template)
for _ in range(2):
    connection = sqlite.connect(path)
    try:
        connection.execute(f"SELECT zeroblob({ROW_BYTES_MAX + 1})")
    except Exception as error:
        print(type(error).__name__)
    connection.close()
    assert sqlite_memory.take_little()
"""


def _taken(folder: Path, how: str) -> int:
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(folder), how]
    return int(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=60).stdout)


def test_open_databases_take_less_than_by_default(tmp_path: Path) -> None:
    assert _taken(tmp_path / "a", "little") < 0.7 * _taken(tmp_path / "b", "default")


def test_what_statements_make_is_limited_afterwards_as_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    said = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=60).stdout
    assert said.split() == [b"InvalidArgument"] * 2
