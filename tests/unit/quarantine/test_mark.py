"""Does a process that died say what it was running?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.object_id import ObjectId
from actors.runtime.running import ACTIVATION, METHOD_BYTES_MAX, SIZE_BYTES, RunningMark, bounded_method, encode_mark
from tests.conftest import REPOSITORY
from tests.unit.quarantine.world import BAD, GOOD, WIDEST


@pytest.fixture
def mark_path(tmp_path: Path) -> Path:
    return tmp_path / "host-0.running"


@pytest.mark.parametrize("object_id", [BAD, WIDEST, ObjectId("A", "ä/ö", "a.b\ud83d")], ids=["plain", "widest", "odd"])
def test_a_mark_is_read_by_the_next_host(mark_path: Path, object_id: ObjectId) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(object_id, "append"))
    assert RunningMark(mark_path).read() == (object_id, "append")
    mark.clear()
    assert RunningMark(mark_path).read() is None


def test_a_mark_replaces_a_longer_one(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(WIDEST, "m" * METHOD_BYTES_MAX))
    mark.set(encode_mark(BAD, ACTIVATION))
    assert mark.read() == (BAD, ACTIVATION)


def test_a_method_of_any_length_is_marked_by_how_it_begins(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    for method in ("ä" * 10_000, "aä" * 200, "m" * METHOD_BYTES_MAX):
        for marked in (encode_mark(WIDEST, method), encode_mark(WIDEST, "") + method.encode()):
            mark.set(marked)
            assert mark.read() == (WIDEST, bounded_method(method))
    assert mark_path.stat().st_size == SIZE_BYTES


def test_a_mark_that_was_half_set_is_none(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(BAD, "crash"))
    new = mark_path.read_bytes().rstrip(b"\0")
    for written in range(1, len(new)):
        # From either end: in which order the bytes are copied, nobody promises.
        for offset, part in ((0, new[:written]), (len(new) - written, new[-written:])):
            mark.set(encode_mark(GOOD, "append"))
            mark.clear()
            with mark_path.open("r+b") as file:
                file.seek(offset)
                file.write(part)
            assert mark.read() is None, (written, offset)


@given(content=st.binary(max_size=2 * SIZE_BYTES) | st.binary(max_size=SIZE_BYTES).map(lambda rest: b"\x01" + rest))
def test_any_other_file_holds_no_mark(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("mark") / "host-0.running"
    path.write_bytes(content)
    mark = RunningMark(path)
    assert mark.read() is None
    mark.set(encode_mark(BAD, "crash"))
    assert RunningMark(path).read() == (BAD, "crash")


def test_text_that_names_no_object_is_no_mark(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    for text in (
        b"",
        b"a\0b",
        b"1\0t:n\0m",
        b"A\0no colon\0m",
        b"A\0t:%ff\0m",
        b"\xff\0t:n\0m",
        b"A\0:\0m",
        b"A\0t:n\0m\0",
    ):
        mark.set(text)
        assert mark.read() is None, text


def test_a_host_without_a_place_for_its_mark_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark = RunningMark(tmp_path)  # a folder
    assert "will not be recognised" in caplog.text
    mark.set(encode_mark(WIDEST, "m" * METHOD_BYTES_MAX))
    mark.clear()
    assert mark.read() is None
    mark.close()


def test_a_mark_does_not_follow_a_link(mark_path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * SIZE_BYTES)
    mark_path.symlink_to(victim)
    RunningMark(mark_path).set(encode_mark(BAD, "crash"))
    assert victim.read_bytes() == b"x" * SIZE_BYTES


def test_a_closed_mark_says_nothing_and_may_be_cleared_late(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(BAD, "crash"))
    mark.close()
    mark.set(encode_mark(BAD, "crash"))
    mark.clear()
    mark.close()
    assert RunningMark(mark_path).read() is None
    mark.close(remove=True)
    assert not mark_path.exists()
    mark.close(remove=True)


DIES = """
import os, signal, sys
from pathlib import Path
from actors.runtime.object_id import ObjectId
from actors.runtime.running import RunningMark, encode_mark
mark = RunningMark(Path(sys.argv[1]))
if sys.argv[2] != "idle":
    mark.set(encode_mark(ObjectId("Notebook", "acme", "good"), "append"))
    mark.clear()
    mark.set(encode_mark(ObjectId("Notebook", "acme", "bad"), "crash"))
if sys.argv[2] == "exit":
    os._exit(7)
os.kill(os.getpid(), getattr(signal, "SIGKILL" if sys.argv[2] == "idle" else sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV", "idle"])
def test_a_process_that_died_left_its_mark(mark_path: Path, how: str) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, str(mark_path), how], cwd=REPOSITORY, timeout=60, check=False)
    assert died.returncode == (7 if how == "exit" else died.returncode) != 0
    assert RunningMark(mark_path).read() == (None if how == "idle" else (BAD, "crash"))
