"""Is only that ended which surely belongs to the recorded run, and is a data directory owned by one service?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from deployments import run_lock
from deployments.leftovers import RunRecord, end, processes_of
from deployments.process_end import is_ending

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
    first, second = f"process {os.getpid()}, port 8000", "process 8, port 8001"
    pauses: list[float] = []
    with (
        run_lock.hold(tmp_path, data_dir=tmp_path, owner=first),
        pytest.raises(run_lock.DataDirectoryInUse, match=first),
        run_lock.hold(tmp_path, data_dir=tmp_path, owner=second, sleep=pauses.append),
    ):
        pass
    assert pauses == []  # an owner that lives is not waited for
    with run_lock.hold(tmp_path, data_dir=tmp_path, owner=second):
        pass


@contextmanager
def held_by(folder: Path, owner: str) -> Iterator[ExitStack]:
    """The data directory in the hands of `owner`, until what is given is closed."""
    with ExitStack() as holding:
        holding.enter_context(run_lock.hold(folder, data_dir=folder, owner=owner))
        yield holding


def test_an_owner_that_was_killed_is_waited_for_until_the_kernel_lets_its_lock_go(tmp_path: Path) -> None:
    asked: list[int] = []
    pauses: list[float] = []

    def ends(pid: int) -> bool:
        asked.append(pid)
        return True

    with held_by(tmp_path, "process 7, port 8000") as first:

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                first.close()

        with run_lock.hold(
            tmp_path, data_dir=tmp_path, owner="process 8, port 8001", ends=ends, monotonic=lambda: 0.0, sleep=sleep
        ):
            pass
    assert asked == [7] * 3
    assert len(pauses) == 3


def test_an_owner_that_does_not_end_is_waited_for_no_longer_than_it_may_take(tmp_path: Path) -> None:
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    with (
        held_by(tmp_path, "process 7, port 8000"),
        pytest.raises(run_lock.DataDirectoryInUse, match="process 7, port 8000"),
        run_lock.hold(
            tmp_path, data_dir=tmp_path, owner="x", ends=lambda _: True, monotonic=lambda: now_s, sleep=sleep
        ),
    ):
        pass
    assert now_s == pytest.approx(run_lock.WAIT_S, abs=2 * run_lock.AGAIN_AFTER_S)


def test_one_that_takes_over_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    with held_by(tmp_path, "process 7, port 8000") as first, ExitStack() as later:

        def sleep(_: float) -> None:
            first.close()
            later.enter_context(run_lock.hold(tmp_path, data_dir=tmp_path, owner="process 9, port 8000"))

        with (
            pytest.raises(run_lock.DataDirectoryInUse, match="process 9"),
            run_lock.hold(tmp_path, data_dir=tmp_path, owner="x", ends=lambda pid: pid == 7, sleep=sleep),
        ):
            pass


def test_an_owner_of_no_known_process_is_not_waited_for(tmp_path: Path) -> None:
    with (
        held_by(tmp_path, ""),
        pytest.raises(run_lock.DataDirectoryInUse, match="owner unknown"),
        run_lock.hold(tmp_path, data_dir=tmp_path, owner="x", ends=lambda _: True, sleep=lambda _: None),
    ):
        pass


def test_a_process_that_runs_does_not_end_and_one_that_was_killed_or_is_gone_does() -> None:
    assert not is_ending(os.getpid())
    with child(sys.executable, "-c", WAITING) as process:
        assert not is_ending(process.pid)
        process.kill()
        assert is_ending(process.pid)  # whether or not the kernel has got to it
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_ending(process.pid)  # nobody has collected it
    assert is_ending(process.pid)


@pytest.mark.parametrize(
    ("stat", "pending", "ends"),
    [
        ("S 1 7 7 0 -1 4194304", 0, False),
        ("S 1 7 7 0 -1 4194304", 1 << 14, False),
        ("R 1 7 7 0 -1 4194308", 0, True),
        ("S 1 7 7 0 -1 4194304", 1 << 8, True),
        ("Z 1 7 7 0 -1 4194304", 0, True),
    ],
    ids=["lives", "was asked to end", "is taken apart", "was killed", "waits to be collected"],
)
def test_what_the_kernel_tells_of_a_process_says_whether_it_ends(
    tmp_path: Path, stat: str, pending: int, ends: bool
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a) Z (name) {stat} 0 0\n")
    (tmp_path / "7" / "status").write_text(f"Name:\ta\nSigPnd:\t{0:016x}\nShdPnd:\t{pending:016x}\n")
    assert is_ending(7, tmp_path) is ends
