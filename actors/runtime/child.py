"""How does a host have something done that may hang, or take all memory, without hanging with it?

In a process of its own (`limited`), which is killed when its time is over or its host stops. Whoever asked is told only
when the process has ended: what it had open is nobody's then.

It is for work that is rare: a process takes about 50 ms to start. The answer is read as data and nothing else, since
what was asked may come from anywhere.
"""

from __future__ import annotations

import enum
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.runtime import limited
from actors.runtime.errors import DurableError, ObjectOverloaded, ObjectReset

#: A process starts in a twentieth of this on a busy machine; then its time begins.
START_MAX_S = 10.0
#: A program that knows its own time ends by itself, and is killed so long after it.
GRACE_S = 0.5
#: Between two looks at whether the host stops.
_LOOK_EVERY_S = 0.02
_PIECE_BYTES = 256 * 1024


class Why(enum.Enum):
    """What ended a process before it answered."""

    NOT_STARTED = "could not be started"
    LATE = "took too long"
    STOPPED = "was stopped"
    #: By a limit of its memory, of its files or of its answer, or by itself.
    DIED = "died"


class ChildEnded(Exception):
    """There is no answer."""

    def __init__(self, why: Why, detail: str = "") -> None:
        super().__init__(why, detail)
        self.why = why
        self.detail = detail

    def meaning(self, object_key: str) -> DurableError | None:
        """What to tell whoever asked; None where it is about what was asked."""
        if self.why is Why.STOPPED:
            return ObjectReset(object_key, "its host is stopping")
        if self.why is Why.NOT_STARTED:
            return ObjectOverloaded(object_key, f"no process could be started: {self.detail}", 1.0)
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildLimits:
    """What a process may take. `timeout_s` is for what it does once it has started."""

    timeout_s: float
    memory_bytes: int
    file_bytes: int
    answer_bytes_max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What is run.

    Args:
        path: a Python file.
        folders: where it finds what it imports, after the standard library.
        environment: what it is told of its surroundings. Nothing, where what it handles is foreign.
        site: it has the packages of this interpreter, which takes it some time.
    """

    path: Path
    folders: Sequence[Path | str] = ()
    environment: Mapping[str, str] | None = None
    site: bool = False


def answer_of(
    program: Program,
    asked: Mapping[str, Any],
    limits: ChildLimits,
    *,
    stopped: Callable[[], bool],
    monotonic: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Runs a program and returns what it answers; blocks until its process has ended.

    Must be called in a thread that lives on meanwhile: the process ends with it.

    Raises:
        ChildEnded: there is no answer.
    """
    started_s = monotonic()
    try:
        child = subprocess.Popen(  # noqa: S603  our own programs and interpreter
            _command(program, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(program.environment or {}),
            bufsize=0,
        )
    except OSError as error:
        raise ChildEnded(Why.NOT_STARTED, str(error)) from error
    with child:
        try:
            answer = _Talk(child, json.dumps(asked).encode(), limits, stopped, monotonic).answer(started_s)
        finally:
            # Also one that has answered: it may do nothing more.
            child.kill()
            child.wait()
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        raise ChildEnded(Why.DIED, f"exit {child.returncode}") from error
    return found


def _command(program: Program, limits: ChildLimits) -> list[str]:
    cpu_s = math.ceil(START_MAX_S + limits.timeout_s + GRACE_S)
    asked = {
        "program": str(program.path),
        "parent": os.getpid(),
        "folders": [str(folder) for folder in program.folders],
        "limits": {
            "RLIMIT_CPU": cpu_s,
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_FSIZE": limits.file_bytes,
        },
    }
    isolated = ["-I"] if program.site else ["-I", "-S"]
    return [sys.executable, *isolated, str(Path(limited.__file__).resolve()), json.dumps(asked)]


class _Talk:
    """One question and its answer. Neither side waits for the other to read."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        asked: bytes,
        limits: ChildLimits,
        stopped: Callable[[], bool],
        monotonic: Callable[[], float],
    ) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._stdin, self._stdout = child.stdin, child.stdout
        self._left = memoryview(asked)
        self._limits = limits
        self._stopped = stopped
        self._monotonic = monotonic

    def answer(self, started_s: float) -> bytes:
        """All that the program says after its first line, which tells that its time begins.

        Raises:
            ChildEnded
        """
        said = bytearray()
        give_up_s, begun = started_s + START_MAX_S, False
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            selector.register(self._stdout, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(_LOOK_EVERY_S)]
                if self._stdin in ready and self._write():
                    selector.unregister(self._stdin)
                    self._stdin.close()
                if self._stdout in ready:
                    piece = self._stdout.read(_PIECE_BYTES)
                    if not piece:
                        return bytes(said).partition(b"\n")[2]
                    said += piece
                    if not begun:
                        give_up_s, begun = self._monotonic() + self._limits.timeout_s + GRACE_S, True
                    if len(said) > self._limits.answer_bytes_max:
                        raise ChildEnded(Why.DIED, "its answer is too large")
                if self._stopped():
                    raise ChildEnded(Why.STOPPED)
                if self._monotonic() > give_up_s:
                    raise ChildEnded(Why.LATE if begun else Why.NOT_STARTED, f"no sign of it in {START_MAX_S:g} s")

    def _write(self) -> bool:
        """Writes what the pipe takes. True: there is nothing more to be written."""
        try:
            written = self._stdin.write(self._left)
        except BrokenPipeError:
            return True  # it died, and its other pipe will tell
        self._left = self._left[written or 0 :]
        return not self._left
