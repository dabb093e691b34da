"""How does a test give orders to a process that it will kill?

Orders and answers are JSON, one value a line. The process lives until it is killed, with all that it started, and never
gets to close anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

import psutil

from tests.conftest import REPOSITORY

#: None may hang, whatever was done to it.
ANSWER_TIMEOUT_S = 120.0
END_WITHIN_S = 60.0
_LINE_BYTES_MAX = 32 * 1024 * 1024

Obey: TypeAlias = Callable[[dict[str, Any]], Awaitable[Any]]


class Child:
    """The process, from the test's side."""

    def __init__(self, module: str, environ: Mapping[str, str], *arguments: str) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        self._environ = {**os.environ, **environ, "PYTHONPATH": str(REPOSITORY)}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Child:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def order(self, order: dict[str, Any]) -> Any:
        """Gives one order, and waits for the answer.

        Raises:
            EOFError: the process is gone.
        """
        process = self._process
        if process is None:
            raise EOFError(f"the process was gone before it was told {order}")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            raise EOFError(f"the process was gone before it answered {order}")
        return json.loads(line)

    async def kill(self) -> None:
        """`kill -9` of the process and of all that it started. Returns when they are gone."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        root = psutil.Process(process.pid)
        found = [root, *root.children(recursive=True)]
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.stdin.close()
        await process.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, found, timeout=END_WITHIN_S)
        assert alive == []


async def serve(obey: Obey) -> None:
    """The other side: answers orders until there are no more. An error ends the process."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer = json.dumps(await obey(json.loads(line)))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
