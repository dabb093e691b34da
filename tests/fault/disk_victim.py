"""Whose disk fails? A program that holds durable objects, in a process of its own.

`main` reads orders, one JSON value a line, and answers each with one line. `Victim` is the other end, in the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from actors.runtime.backend_local import LocalBackend
from actors.runtime.host import HostSettings
from actors.runtime.object_id import ObjectId
from tests.conftest import REPOSITORY
from tests.objects import Notebook

#: One slot, so that a start is short; no object hibernates by itself, so that each run makes the same calls.
SETTINGS = HostSettings(slots=1, idle_after_s=86_400.0)
OBJECT = ObjectId("Notebook", "acme", "n")
#: What a victim may take for one order. None may hang, whatever its disk does.
ANSWER_TIMEOUT_S = 60.0

LINE_BYTES_MAX = 32 * 1024 * 1024

#: A method of the notebook with its arguments.
Call: TypeAlias = Sequence[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one call, or of a start: a value, or the class and the text of an error."""

    value: Any = None
    error: str = ""
    text: str = ""


def notebook_in(data_dir: Path) -> LocalBackend:
    return LocalBackend(data_dir, [Notebook], settings=SETTINGS)


class Victim:
    """The process, as the test sees it. It lives until it is killed, and never gets to close anything."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = {**os.environ, **environ, "PYTHONPATH": str(REPOSITORY)}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Victim:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.kill()
            process.stdin.close()
            await process.wait()

    async def start(self, data_dir: Path) -> Outcome:
        """Has it open a data directory. What it had open before stays so until it is killed."""
        return (await self._order({"start": str(data_dir)}))[0]

    async def call(self, *calls: Call) -> list[Outcome]:
        """Has it make all of these calls at once."""
        return await self._order({"calls": calls})

    async def hibernate(self) -> None:
        await self._order({"hibernate": True})

    async def _order(self, order: dict[str, Any]) -> list[Outcome]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await process.stdout.readline()
        assert line, f"the victim ended by itself after {order}"
        return [Outcome(**outcome) for outcome in json.loads(line)]


class Program:
    """What runs in the victim."""

    def __init__(self) -> None:
        self._started: list[LocalBackend] = []

    async def obey(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        if "start" in order:
            return [self._start(Path(order["start"]))]
        if "hibernate" in order:
            if not self._started[-1].host.evict(OBJECT):
                raise RuntimeError("the object is busy")
            return []
        stub = self._started[-1].namespace(Notebook).get(OBJECT.tenant, OBJECT.name)
        calls = [getattr(stub, method)(*arguments) for method, *arguments in order["calls"]]
        return [_outcome(value) for value in await asyncio.gather(*calls, return_exceptions=True)]

    def _start(self, data_dir: Path) -> dict[str, Any]:
        try:
            self._started.append(notebook_in(data_dir))
        except Exception as error:  # whatever it is, the test is told
            return _outcome(error)
        return _outcome(None)


def _outcome(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseException):
        return {"error": type(value).__name__, "text": str(value)}
    return {"value": value}


async def main() -> None:
    program = Program()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(await program.obey(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
