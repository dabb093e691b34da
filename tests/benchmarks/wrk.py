"""How many requests of one kind does a service answer, and how fast? As `wrk` measures it, one thread."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SCRIPT = Path(__file__).parent / "peers" / "load.lua"
CONNECTIONS = 32

Job = Literal["check", "append", "history"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is asked for. `ids_file` has the ids of the sessions, one a line; `in_turn` goes through them in order."""

    job: Job
    clients: int = 1
    ids_file: Path | None = None
    connections: int = CONNECTIONS
    in_turn: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What came of it."""

    requests: int
    rate: float
    median_s: float
    p99_s: float


def why_not() -> str | None:
    """What keeps wrk from running here."""
    return None if shutil.which("wrk") else "wrk is not installed (apt-get install wrk)"


def run(url: str, key: str, work: Work, duration_s: int) -> Load:
    """
    Raises:
        RuntimeError: a request failed.
    """
    environ = {**os.environ, "KEY": key, "JOB": work.job, "CLIENTS": str(work.clients)}
    if work.ids_file is not None:
        environ["IDS"] = str(work.ids_file)
    if work.in_turn:
        environ["ORDER"] = "turn"
    threads = ["--threads", "1", "--connections", str(work.connections), "--duration", f"{duration_s}s"]
    printed = subprocess.run(
        ["wrk", *threads, "--timeout", "10s", "--script", str(SCRIPT), url],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=duration_s + 30,
    ).stdout
    told = json.loads(printed.splitlines()[-1])
    if told["errors"]:
        raise RuntimeError(f"{url}: {told['errors']} of {told['requests']} requests failed:\n{printed}")
    return Load(
        requests=told["requests"],
        rate=told["requests"] / (told["duration_us"] / 1e6),
        median_s=told["median_us"] / 1e6,
        p99_s=told["p99_us"] / 1e6,
    )
