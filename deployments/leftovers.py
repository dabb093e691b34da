"""What did an earlier run of this service leave behind, and how is it ended?

After `kill -9` of the process that started it, a HAProxy lives on and holds the HTTP port, and Ray's workers may take
some seconds to notice, holding the objects' files meanwhile. Each run therefore writes down, in its data directory,
what it started (`RunRecord`); the next run ends what is left of that before it starts its own.

The promise: a process is ended only if it is surely of that run. It must belong to this user, be the very executable
that was recorded (HAProxy) or a Python or Ray executable (Ray), and hold what no other process would: HAProxy, a
configuration file in the run's own directory; Ray's processes, a log of the run's own Ray session, open for writing.
psutil compares start times before it signals, so that a process id used again is not hit.

It does not decide whether a run is still alive: the lock of the data directory does, and is taken first.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

# Time to end by themselves: HAProxy takes milliseconds; some of Ray's workers wait for a raylet that is gone.
TERM_GRACE_S: Final = 2.0
KILL_GRACE_S: Final = 5.0
RECORD_NAME: Final = "run.json"


class RunRecord(BaseModel):
    """What one run started. Read back from disk, hence pydantic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started_at: float
    host: str
    port: int
    runtime_dir: Path
    haproxy: Path
    ray_session_dir: Path | None = None
    ray_address: str | None = None

    def write(self, directory: Path) -> None:
        """Replace the record in one step, so that a killed writer leaves the old one or the new one."""
        partial = directory / (RECORD_NAME + ".new")
        with partial.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / RECORD_NAME)

    @classmethod
    def read(cls, directory: Path) -> RunRecord | None:
        """The last run's record, or None where there is none that can be understood: then nothing is surely ours."""
        try:
            return cls.model_validate_json((directory / RECORD_NAME).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None


def processes_of(record: RunRecord) -> list[psutil.Process]:
    """Every living process that is surely of the recorded run, except this process."""
    mine = psutil.Process()
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == mine.pid or process.uids().real != mine.uids().real:
                continue
            if _is_haproxy_of(process, record) or _is_ray_of(process, record):
                found.append(process)
        except psutil.Error:
            # It ended while we looked, or is not ours to look at.
            continue
    return found


def _is_haproxy_of(process: psutil.Process, record: RunRecord) -> bool:
    if not _is_executable(process, record.haproxy):
        return False
    command = process.cmdline()
    configs = [Path(value) for flag, value in itertools.pairwise(command) if flag == "-f"]
    return any(config.is_relative_to(record.runtime_dir) for config in configs)


def _is_ray_of(process: psutil.Process, record: RunRecord) -> bool:
    if record.ray_session_dir is None or process.create_time() < record.started_at - 1:
        return False
    name = Path(process.exe()).name
    if not name.startswith(("python", "raylet", "gcs_server")):
        return False
    # Not the standard output alone: that of Ray's agents is a pipe to the raylet.
    return any(
        file.mode != "r" and Path(file.path).is_relative_to(record.ray_session_dir) for file in process.open_files()
    )


def _is_executable(process: psutil.Process, expected: Path) -> bool:
    # The kernel's mark for a file that was since replaced, as an upgrade of the environment does.
    return Path(process.exe().removesuffix(" (deleted)")) == expected


def end(
    processes: Iterable[psutil.Process], *, term_grace_s: float = TERM_GRACE_S, kill_grace_s: float = KILL_GRACE_S
) -> Sequence[psutil.Process]:
    """Ask these processes to end, then make them, and return those that even that did not end."""
    alive = list(processes)
    for stop, grace_s in ((psutil.Process.terminate, term_grace_s), (psutil.Process.kill, kill_grace_s)):
        for process in alive:
            try:
                stop(process)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(alive, timeout=grace_s)
        # A zombie holds nothing; whoever is its parent has yet to collect it.
        alive = [process for process in alive if not _is_zombie(process)]
        if not alive:
            break
    return alive


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
