"""Whose disk fails? A program that holds durable objects, in a process of its own.

`Program` is what runs there. `Victim` is the other end, in the test.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from actors.runtime import sqlite
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import unpack
from actors.runtime.connection import ObjectConnection
from actors.runtime.host_settings import HostSettings
from actors.runtime.object_id import ObjectId
from tests.conformance.classes import Desk
from tests.conformance.support import call_of
from tests.fault.child import Child, serve

#: One slot, so that a start is short; no object hibernates by itself, so that each run makes the same calls.
SETTINGS = HostSettings(slots=1, idle_after_s=86_400.0)
OBJECT = ObjectId("Desk", "acme", "n")
#: After how many pages in the log SQLite copies it into the database, if this is in the victim's environment.
CHECKPOINT_PAGES = "VICTIM_CHECKPOINT_PAGES"
#: A method of the desk with its arguments.
Call: TypeAlias = Sequence[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one call, or of a start: a value, or the class and the text of an error."""

    value: Any = None
    error: str = ""
    text: str = ""


def desk_in(data_dir: Path) -> LocalBackend:
    return LocalBackend(data_dir, [Desk], settings=SETTINGS)


class Victim:
    """The process, as the test sees it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._child = Child(__name__, environ)

    async def __aenter__(self) -> Victim:
        await self._child.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._child.kill()

    async def kill(self) -> None:
        await self._child.kill()

    async def start(self, data_dir: Path) -> Outcome:
        """Has it open a data directory. What it had open before stays so until it is killed."""
        return (await self._order({"start": str(data_dir)}))[0]

    async def call(self, *calls: Call) -> list[Outcome]:
        """Has it make all of these calls at once."""
        return await self._order({"calls": calls})

    async def hibernate(self) -> None:
        await self._order({"hibernate": True})

    async def _order(self, order: dict[str, Any]) -> list[Outcome]:
        return [Outcome(**outcome) for outcome in await self._child.order(order)]


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
        calls = [self._call(method, *arguments) for method, *arguments in order["calls"]]
        return [_outcome(value) for value in await asyncio.gather(*calls, return_exceptions=True)]

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Sent once: a stub would repeat what it may, and the test is to see each answer."""
        backend = self._started[-1]
        stub = backend.namespace(Desk).get(OBJECT.tenant, OBJECT.name)
        request_id = secrets.token_hex(8) if method == "append" else ""
        return unpack(await backend.send(OBJECT, call_of(stub, method, *arguments, request_id=request_id)))

    def _start(self, data_dir: Path) -> dict[str, Any]:
        try:
            self._started.append(desk_in(data_dir))
        except Exception as error:  # whatever it is, the test is told
            return _outcome(error)
        return _outcome(None)


def _outcome(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseException):
        return {"error": type(value).__name__, "text": str(value)}
    return {"value": value}


def _checkpoint_after(pages: int) -> None:
    connect = sqlite.connect

    def connect_and_set(path: Path, size_bytes_max: int) -> ObjectConnection:
        connection = connect(path, size_bytes_max)
        connection.run_own(f"PRAGMA wal_autocheckpoint = {pages}")
        return connection

    setattr(sqlite, connect.__name__, connect_and_set)


if __name__ == "__main__":
    if CHECKPOINT_PAGES in os.environ:
        _checkpoint_after(int(os.environ[CHECKPOINT_PAGES]))
    asyncio.run(serve(Program().obey))
