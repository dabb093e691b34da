"""Is only that ended which surely belongs to the recorded run, and is a data directory owned by one service?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from deployments import run_lock
from deployments.leftovers import RunRecord, end, processes_of

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
WAITING = "import signal; print('here', flush=True); signal.pause()"


@contextmanager
def child(*command: str | Path, stdout: int | None = subprocess.PIPE) -> Iterator[psutil.Process]:
    with subprocess.Popen(command, stdout=stdout) as process:
        try:
            if process.stdout is not None:
                process.stdout.readline()
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def record(runtime_dir: Path, *, haproxy: Path, session: Path | None = None) -> RunRecord:
    return RunRecord(
        pid=os.getpid(),
        started_at=time.time() - 5,
        host="127.0.0.1",
        port=8000,
        runtime_dir=runtime_dir,
        haproxy=haproxy,
        ray_session_dir=session,
    )


@pytest.fixture
def haproxy(tmp_path: Path) -> Path:
    """An executable in HAProxy's place that waits, whatever its arguments are."""
    path = tmp_path / "bin" / "haproxy"
    path.parent.mkdir()
    shutil.copy(shutil.which("tail") or "tail", path)
    return path


def test_a_haproxy_is_ours_by_its_executable_and_its_configuration(tmp_path: Path, haproxy: Path) -> None:
    ours, foreign = tmp_path / "h", tmp_path / "other"
    for directory in (ours, foreign):
        (directory / "node").mkdir(parents=True)
        (directory / "node" / "c").write_text("global\n")
    run = record(ours, haproxy=haproxy)
    with (
        child(haproxy, "-f", ours / "node" / "c") as mine,
        child(haproxy, "-f", foreign / "node" / "c"),
        child("tail", "-f", ours / "node" / "c"),
    ):
        assert processes_of(run) == [mine]


def test_a_ray_process_is_ours_by_the_log_it_writes(tmp_path: Path) -> None:
    session = tmp_path / "session_1"
    session.mkdir()
    run = record(tmp_path / "h", haproxy=tmp_path / "none", session=session)
    with (
        (session / "worker.out").open("w") as ours,
        (tmp_path / "session_10").open("w") as foreign,
        child(sys.executable, "-c", WAITING, stdout=ours.fileno()) as mine,
        child(sys.executable, "-c", WAITING, stdout=foreign.fileno()),
        child(sys.executable, "-c", WAITING, str(session)),
        child(sys.executable, "-c", f"log = open({str(session / 'worker.out')!r}); {WAITING}"),
        child("sleep", "60", stdout=ours.fileno()),
    ):
        assert processes_of(run) == [mine]


def test_a_process_that_ignores_the_request_is_killed() -> None:
    with child(sys.executable, "-c", STUBBORN) as deaf:
        assert end([deaf], term_grace_s=0.1, kill_grace_s=10) == []
        assert not deaf.is_running()


def test_ending_what_has_ended_is_no_error() -> None:
    with child("true") as gone:
        gone.wait(timeout=10)
        assert end([gone]) == []


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(tmp_path / "h", haproxy=Path("/bin/haproxy"), session=tmp_path)
    written.write(tmp_path)
    assert RunRecord.read(tmp_path) == written


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b'{"pid": "none"}'])
def test_a_record_that_is_not_one_names_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert RunRecord.read(tmp_path) is None


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        run_lock.hold(tmp_path, data_dir=tmp_path, owner="process 7, port 8000"),
        pytest.raises(run_lock.DataDirectoryInUse, match="process 7, port 8000"),
        run_lock.hold(tmp_path, data_dir=tmp_path, owner="process 8, port 8001"),
    ):
        pass
    with run_lock.hold(tmp_path, data_dir=tmp_path, owner="process 8, port 8001"):
        pass
