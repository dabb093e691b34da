"""How is what was found shown: to a person as a table, to a program as a line of JSON for each?

Whatever came from outside (names, values of rows) is shown with its control characters escaped, so that it can't do
anything to the terminal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from actors.runtime.object_info import MigrationProgress, ObjectInfo
from actors.runtime.query import QueryResult
from actors.runtime.query_child import plain_value

_UNLIMITED = 1_000_000
#: Of one value in a table, whose column would else be as wide for every row. JSON holds it whole.
CELL_CHARS_MAX = 200


class Output(Protocol):
    """Where commands show what they found."""

    def objects(self, infos: Sequence[ObjectInfo], more_after: str | None) -> None: ...

    def one(self, info: ObjectInfo) -> None: ...

    def rows(self, result: QueryResult) -> None: ...

    def done(self, what: str, object_key: str, **facts: Any) -> None: ...

    def progress(self, now: MigrationProgress) -> None: ...

    def finish(self) -> None: ...


class JsonOutput:
    """A JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def objects(self, infos: Sequence[ObjectInfo], more_after: str | None) -> None:
        for info in infos:
            self.one(info)
        if more_after is not None:
            self._write({"next": more_after})

    def one(self, info: ObjectInfo) -> None:
        self._write({"object": str(info.id), **info.plain()})

    def rows(self, result: QueryResult) -> None:
        self._write({"columns": list(result.columns)})
        for row in result.rows:
            self._write([plain_value(value) for value in row])
        if result.truncated:
            self._write({"truncated": True})

    def done(self, what: str, object_key: str, **facts: Any) -> None:
        self._write({"object": object_key, "done": what, **facts})

    def progress(self, now: MigrationProgress) -> None:
        failed = [{"object": str(object_id), "problem": problem} for object_id, problem in now.failed]
        told = {"total": now.total, "seen": now.seen, "migrated": now.migrated, "failures": now.failures}
        self._write({**told, "failed": failed})

    def finish(self) -> None:
        self._stream.flush()

    def _write(self, plain: Any) -> None:
        self._stream.write(json.dumps(plain) + "\n")


class TableOutput:
    """Tables, and sentences."""

    def __init__(self, stream: TextIO) -> None:
        # In a file or a pipe every row is one line.
        self._console = Console(file=stream, highlight=False, width=None if stream.isatty() else _UNLIMITED)
        self._bar: Progress | None = None
        self._last: MigrationProgress | None = None

    def objects(self, infos: Sequence[ObjectInfo], more_after: str | None) -> None:
        table = Table("object", box=None, pad_edge=False)
        for column in ("size", "last active", "alarm", "schema", "state"):
            table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
        table.columns[0].overflow = "fold"  # to be copied as a whole
        for info in infos:
            schema = "?" if info.migrations is None else printable(info.schema_version or "-")
            cells = (_size(info.size_bytes), _when(info.last_active_at), _when(info.alarm_at), schema, _state(info))
            table.add_row(Text(str(info.id)), *[Text(cell) for cell in cells])
        if infos:
            self._console.print(table)
        else:
            self._say("no objects")
        if more_after is not None:
            self._say(f"there are more: --after {more_after}")

    def one(self, info: ObjectInfo) -> None:
        table = Table(show_header=False, box=None, pad_edge=False)
        times = ("last_active_at", "alarm_at")
        for name, value in {"object": str(info.id), **info.plain()}.items():
            shown = _when(value) if name in times else _size(value) if name == "size_bytes" else _cell(value)
            table.add_row(name, Text(shown))
        self._console.print(table)

    def rows(self, result: QueryResult) -> None:
        table = Table(box=None, pad_edge=False)
        for column in result.columns:
            table.add_column(Text(printable(column)))
        for row in result.rows:
            table.add_row(*[Text(_short(_cell(value))) for value in row])
        self._console.print(table)
        if result.truncated:
            self._say("there are more rows")

    def done(self, what: str, object_key: str, **facts: Any) -> None:
        self._say(f"{object_key}: {what}" + "".join(f", {_cell(fact)} {name}" for name, fact in facts.items()))

    def progress(self, now: MigrationProgress) -> None:
        if self._bar is None:
            columns: Iterable[Any] = (TextColumn("migrating"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.add_task("", total=now.total)
            self._bar.start()
        # Objects come and go during a sweep: the count at its start is not always what it finds.
        self._bar.update(self._bar.task_ids[0], completed=now.seen, total=max(now.total, now.seen))
        self._last = now

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._last is not None:
            for object_id, problem in self._last.failed:
                self._say(f"{object_id}: {printable(problem)}")
            self._say(f"{self._last.seen} objects, {self._last.migrated} migrated, {self._last.failures} failed")

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def printable(text: str) -> str:
    """The text with what is no printable character escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case bytes():
            return f"x'{value.hex()}'"
    return printable(str(value))


def _short(shown: str) -> str:
    return shown if len(shown) <= CELL_CHARS_MAX else f"{shown[: CELL_CHARS_MAX - 1]}…"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _when(at: float | None) -> str:
    if at is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (ValueError, OverflowError, OSError):  # a file may claim any time
        return f"{at:g}"


def _state(info: ObjectInfo) -> str:
    if info.quarantined:
        return "quarantined"
    if info.problem is not None:
        return "unreadable"
    return "resident" if info.resident else "asleep"
