"""Which process reads an object's database for its host?"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psutil

#: So long it has computed by then: what it was asked is under way.
_BUSY_FOR_S = 0.2


async def reader_of(path: Path, host: psutil.Process) -> psutil.Process:
    """The child of the host that has the file open, once it is in the middle of something that takes long."""
    async with asyncio.timeout(30.0):
        while True:
            for one in host.children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    opened = {file.path for file in one.open_files()}
                    if str(path) in opened and one.cpu_times().user > _BUSY_FOR_S:
                        return one
            await asyncio.sleep(0)
