"""What does each command do?

Every command is a method that asks an `Operator` and shows the answer. What goes wrong is one line on the error output,
and the exit code says so: 0 done, 1 not done, 2 asked wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from actors.cli.arguments import DEFAULT_ADDRESS, DEFAULT_APP, parser
from actors.cli.output import JsonOutput, Output, TableOutput, printable
from actors.runtime.backend_local import LocalBackend
from actors.runtime.backend_ray import connect
from actors.runtime.errors import DurableError, InvalidArgument, SlotOwned, StatementRefused
from actors.runtime.host_settings import HostSettings
from actors.runtime.object import DurableObject
from actors.runtime.object_id import ObjectId
from actors.runtime.operations import Inspectable, Operator
from actors.runtime.slot import recorded_slots
from actors.runtime.transfers import CHUNK_BYTES


class CommandError(Exception):
    """A command can't be carried out; the text is for the person who typed it."""


class AskedWrong(CommandError):
    """What was typed makes no command."""


def main(argv: Sequence[str], out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> int:
    """Carries out one command line. Returns the exit code."""
    asked = parser().parse_args(argv)
    output: Output = JsonOutput(out) if getattr(asked, "json", False) else TableOutput(out)
    try:
        with _objects(asked) as objects:
            return asyncio.run(Commands(Operator(objects), output).run(asked))
    except (CommandError, DurableError, OSError) as error:  # a ConnectionError of Ray's, too
        err.write(f"python -m actors: {printable(_told(error))}\n")
        return 2 if isinstance(error, (AskedWrong, InvalidArgument, StatementRefused)) else 1
    except KeyboardInterrupt:
        return 130
    finally:
        output.finish()


class Commands:
    """The commands, by their names."""

    def __init__(self, operator: Operator, output: Output) -> None:
        self._operator = operator
        self._output = output

    async def run(self, asked: argparse.Namespace) -> int:
        """Returns the exit code."""
        command = {
            "list": self._list,
            "quarantine": self._quarantine,
            "describe": self._describe,
            "query": self._query,
            "evict": self._evict,
            "alarm": self._alarm,
            "export": self._export,
            "import": self._import,
            "delete": self._delete,
            "release": self._release,
            "migrate": self._migrate,
        }[asked.command]
        return await command(asked)

    async def _list(self, asked: argparse.Namespace) -> int:
        after: str | None = asked.after
        while True:
            page = await self._operator.list(
                asked.class_name, tenant=asked.tenant, prefix=asked.prefix, limit=asked.limit, after=after
            )
            after = page.next
            self._output.objects(page.objects, None if asked.all else after)
            if after is None or not asked.all:
                return 0

    async def _quarantine(self, asked: argparse.Namespace) -> int:
        page = await self._operator.list(tenant=asked.tenant, limit=asked.limit, after=asked.after, quarantined=True)
        self._output.objects(page.objects, page.next)
        return 0

    async def _describe(self, asked: argparse.Namespace) -> int:
        self._output.one(await self._operator.describe(_object_id(asked.object)))
        return 0

    async def _query(self, asked: argparse.Namespace) -> int:
        result = await self._operator.query(
            _object_id(asked.object), asked.sql, *asked.binds, rows_max=asked.rows, timeout_s=asked.timeout
        )
        self._output.rows(result)
        return 0

    async def _evict(self, asked: argparse.Namespace) -> int:
        if not await self._operator.evict(_object_id(asked.object), force=asked.force):
            raise CommandError(f"{asked.object} has calls running or waiting; --force ends them")
        self._output.done("evicted", asked.object)
        return 0

    async def _alarm(self, asked: argparse.Namespace) -> int:
        if not await self._operator.fire_alarm(_object_id(asked.object)):
            raise CommandError(f"{asked.object} has no alarm")
        self._output.done("alarm fired", asked.object)
        return 0

    async def _export(self, asked: argparse.Namespace) -> int:
        async with self._operator.export(_object_id(asked.object)) as (size_bytes, pieces):
            with _new_file(asked.file) as target:
                async for piece in pieces:
                    target.write(piece)
        self._output.done("exported", asked.object, bytes=size_bytes)
        return 0

    async def _import(self, asked: argparse.Namespace) -> int:
        async def pieces() -> AsyncGenerator[bytes]:
            with asked.file.open("rb") as source:
                while piece := source.read(CHUNK_BYTES):
                    yield piece

        async with contextlib.aclosing(pieces()) as data:
            self._output.one(await self._operator.import_(_object_id(asked.object), data, replace=asked.replace))
        return 0

    async def _delete(self, asked: argparse.Namespace) -> int:
        await self._operator.delete(_object_id(asked.object))
        self._output.done("deleted", asked.object)
        return 0

    async def _release(self, asked: argparse.Namespace) -> int:
        if not await self._operator.release(_object_id(asked.object)):
            raise CommandError(f"{asked.object} is not in quarantine")
        self._output.done("released", asked.object)
        return 0

    async def _migrate(self, asked: argparse.Namespace) -> int:
        failures = 0
        async for now in self._operator.migrate(asked.class_name):
            self._output.progress(now)
            failures = now.failures
        return 1 if failures else 0


def _told(error: Exception) -> str:
    """One line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    told = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{told}: leave out --data-dir while the service runs" if isinstance(error, SlotOwned) else told


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that was not there, and that is not there if the block fails: half of a database looks like one."""
    with path.open("xb") as file:
        try:
            yield file
        except BaseException:
            path.unlink()
            raise


def _object_id(text: str) -> ObjectId:
    class_name, separator, key = text.partition("/")
    if not separator:
        raise AskedWrong(f"{text!r} is no object: write CLASS/TENANT:NAME")
    return ObjectId.from_key(class_name, key)


@contextlib.contextmanager
def _objects(asked: argparse.Namespace) -> Iterator[Inspectable]:
    """The objects of a running cluster, or of a data directory that nobody uses."""
    data_dir: Path | None = getattr(asked, "data_dir", None)
    if data_dir is None:
        if hasattr(asked, "app"):
            raise AskedWrong("--app goes with --data-dir: a cluster knows its classes")
        yield connect(getattr(asked, "address", DEFAULT_ADDRESS))
        return
    slots = recorded_slots(data_dir)
    if slots is None:
        raise CommandError(f"{data_dir} is no data directory of durable objects")
    classes = _classes(getattr(asked, "app", DEFAULT_APP))
    backend = LocalBackend(data_dir, classes, settings=HostSettings(slots=slots), judges=False)
    with contextlib.closing(backend):
        yield backend


def _classes(app: str) -> list[type[DurableObject]]:
    module_name, separator, name = app.partition(":")
    if not separator:
        raise CommandError(f"--app {app}: write MODULE:NAME")
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the module is the user's, and its code may raise anything
        raise CommandError(f"--app {app}: {type(error).__name__}: {error}") from error
    classes = list(found) if isinstance(found, list | tuple) else []
    if not classes or not all(isinstance(one, type) and issubclass(one, DurableObject) for one in classes):
        raise CommandError(f"--app {app}: is no list of durable classes")
    return classes
