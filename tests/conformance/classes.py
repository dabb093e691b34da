"""The durable classes of these tests, importable by the workers of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.runtime import AlarmInfo, DurableObject, exactly_once, idempotent, interleaved, read
from actors.runtime.namespace import Stub
from tests.objects import Ledger, Notebook, Refusal

#: Of every host that runs them. Few slots start sooner, nobody waits 30 s for a block to be over, and a mailbox is soon
#: full.
SETTINGS: dict[str, Any] = {
    "slots": 8,
    "block_timeout_s": 0.5,
    "mailbox_calls_max": 640,
    "mailbox_bytes_max": 8 * 1024 * 1024,
}


#: Each way of writing but `delete_all`, by name.
STORAGE_WRITES: dict[str, Callable[[Desk], Any]] = {
    "write": lambda desk: desk.add("lost"),
    "write many": lambda desk: desk.storage.sql_many("INSERT INTO line (text) VALUES (?)", [("lost",)]),
    "write by sqlite_utils": lambda desk: desk.storage.database.table("line").insert({"text": "lost"}),
    "write by script": lambda desk: desk.storage.database.executescript("INSERT INTO line (text) VALUES ('lost');"),
    "put": lambda desk: desk.storage.kv.put("k", "lost"),
    "put many": lambda desk: desk.storage.kv.put_many({"k": "lost"}),
    "delete": lambda desk: desk.storage.kv.delete("k"),
    "set alarm": lambda desk: desk.storage.set_alarm(desk.clock.now()),
    "delete alarm": lambda desk: desk.storage.delete_alarm(),
}
STORAGE_USES: dict[str, Callable[[Desk], Any]] = {
    **STORAGE_WRITES,
    "read": lambda desk: desk.lines(),
    "read by sqlite_utils": lambda desk: desk.storage.database.table_names(),
    "size": lambda desk: desk.storage.size_bytes,
    "get": lambda desk: desk.storage.kv.get("k"),
    "list": lambda desk: desk.storage.kv.list(),
    "get alarm": lambda desk: desk.storage.get_alarm(),
    "begin a block": lambda desk: desk.storage.transaction().__enter__(),
}


class Desk(Notebook):
    """A notebook that takes alarms, lets some methods interleave, and calls others of its kind."""

    # -- alarms

    def set_alarm_in(self, seconds: float) -> float:
        at = self.clock.now() + seconds
        self.storage.set_alarm(at)
        return at

    def set_alarm_at(self, at: float) -> None:
        self.storage.set_alarm(at)

    @read
    def alarm_at(self) -> float | None:
        return self.storage.get_alarm()

    def delete_alarm(self) -> None:
        self.storage.delete_alarm()

    def set_alarm_and_raise(self, at: float) -> None:
        self.storage.set_alarm(at)
        raise Refusal("no alarm", 1)

    def delete_alarm_and_raise(self) -> None:
        self.storage.delete_alarm()
        raise Refusal("keep the alarm", 1)

    def set_alarm_and_undo(self, at: float, within: str) -> float | None:
        """Returns what the alarm is after a nested transaction that had set it was undone."""
        transaction = self.storage.transaction if within == "storage" else self.storage.database.atomic
        try:
            with transaction():
                self.storage.set_alarm(at)
                raise Refusal("undo", 1)
        except Refusal:
            return self.storage.get_alarm()

    def erase_and_set_alarm(self, at: float) -> None:
        self.storage.set_alarm(at)
        self.storage.delete_all()

    def write(self, way: str) -> None:
        STORAGE_WRITES[way](self)

    async def write_and_wait(self, way: str) -> None:
        self.write(way)
        await asyncio.sleep(0)

    def erase_and(self, use: str) -> Any:
        """Goes on using the storage that it has deleted."""
        self.storage.delete_all()
        return STORAGE_USES[use](self)

    async def erase_and_later(self, use: str) -> Any:
        await asyncio.sleep(0)
        return self.erase_and(use)

    @exactly_once
    def append_and_erase(self, text: str) -> int:
        number = self.add(text)
        self.storage.delete_all()
        self.storage.delete_all()
        return number

    def erase_undo_and_add(self, text: str, within: str) -> None:
        transaction = self.storage.transaction if within == "storage" else self.storage.database.atomic
        try:
            with transaction(), transaction():
                self.storage.delete_all()
                raise Refusal("undo", 1)
        except Refusal:
            self.add(text)

    def erase_within(self, within: str) -> None:
        transaction = self.storage.transaction if within == "storage" else self.storage.database.atomic
        with transaction(), transaction():
            self.storage.delete_all()

    def plan(self, *, failures: int = 0, again_in_s: float | None = None) -> None:
        """What the handler does: fails so often, or sets an alarm once more."""
        self.storage.kv.put_many({"failures": failures, "again_in_s": again_in_s})

    @interleaved
    def alarm_between(self, at: float) -> float | None:
        """Returns what the alarm was."""
        was = self.storage.get_alarm()
        self.storage.set_alarm(at)
        return was

    @read
    def runs(self) -> list[dict[str, Any]]:
        """What the handler was told each time, and saw."""
        return list(self.storage.kv.get("runs", []))

    async def alarm(self, info: AlarmInfo) -> None:
        run = {"scheduled_at": info.scheduled_at, "retry_count": info.retry_count, "saw": self.storage.get_alarm()}
        again_in_s = self.storage.kv.get("again_in_s")
        if again_in_s is not None:
            self.storage.set_alarm(self.clock.now() + again_in_s)
            self.storage.kv.delete("again_in_s")
            run["set"] = self.storage.get_alarm()
        self.storage.kv.put("runs", [*self.runs(), run])
        await asyncio.sleep(0)
        if info.retry_count < self.storage.kv.get("failures", 0):
            raise Refusal("not yet", info.retry_count)

    # -- what interleaves, and what does not want to

    @interleaved
    @read
    def peek(self) -> list[str]:
        return self.lines()

    @interleaved
    def add_between(self, text: str) -> int:
        return self.add(text)

    @interleaved
    def add_between_and_raise(self, text: str) -> None:
        self.add(text)
        raise Refusal("not this", 1)

    @interleaved
    async def wait_between(self, text: str, gate: Path) -> str:
        return await self.add_around_gate(text, gate)

    async def add_alone(self, text: str, gate: Path) -> str:
        async def alone() -> str:
            (gate.parent / "begun").touch()
            return await self.add_around_gate(text, gate)

        return await self.block_concurrency_while(alone)

    async def add_alone_whatever_comes(self, text: str) -> None:
        """Would go on when it is told to end."""

        async def work() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            self.add(text)

        await self.block_concurrency_while(work)

    async def add_alone_and_raise(self, text: str) -> None:
        async def fail() -> None:
            self.add(text)
            await asyncio.sleep(0)
            self.add(f"{text} later")
            raise Refusal("all of it", 1)

        await self.block_concurrency_while(fail)

    async def steps_and_raise(self, *texts: str) -> None:
        """Each text is a step of its own but the last two, which are one that fails."""
        for text in texts[:-2]:
            self.add(text)
            await asyncio.sleep(0)
        self.add(texts[-2])
        self.add(texts[-1])
        raise Refusal("the last step", 1)

    # -- calls to others

    def other(self, name: str) -> Stub[Desk]:
        return self.objects.namespace(Desk).get(self.id.tenant, name)

    async def tell(self, name: str, text: str) -> int:
        self.add(f"telling {text}")
        return int(await self.other(name).add(text))

    async def tell_once_begun(self, name: str, text: str, begun: Path, other_begun: Path) -> int:
        """Calls the other when both are in the middle of their turns, each of which says so by a file."""
        begun.touch()
        await self._gate(other_begun)
        return int(await self.other(name).add(text))

    async def tell_all(self, names: list[str], text: str) -> list[int]:
        return list(await asyncio.gather(*[self.other(name).add(text) for name in names]))

    async def have_raise(self, name: str) -> str:
        try:
            await self.other(name).add_and_raise("x", Refusal("told to", 4))
        except Refusal as refusal:
            return f"{refusal.reason} {refusal.code}"
        return "nothing was raised"

    async def go_round(self, names: list[str], last: str) -> Any:
        """Calls itself on the first of `names`, with the rest; the last is asked by `last`."""
        if len(names) > 1:
            return await self.other(names[0]).go_round(names[1:], last)
        return await getattr(self.other(names[0]), last)()

    @interleaved
    async def go_round_between(self, names: list[str]) -> Any:
        return await self.go_round(names, "lines")

    async def wait_for(self, name: str, gate: Path) -> str:
        return str(await self.other(name).add_around_gate("waited", gate))

    async def note_how_it_ended(self, name: str, gate: Path) -> None:
        try:
            await self.wait_for(name, gate)
        except Exception as error:  # whatever it was, the test looks at it
            self.add(type(error).__name__)

    def call_from_plain(self, name: str) -> Any:
        """What a plain method can't do: it would have to wait."""
        coroutine = self.other(name).add("never").__await__()
        return next(coroutine)

    async def call_by_reference(self, name: str) -> Any:
        return self.other(name).add.remote("never")

    # -- calls that end in a reset of the object, the first times

    @exactly_once
    def append_after_resets(self, text: str, runs: Path, resets: int) -> int:
        self._reset(runs, resets)
        return self.add(text)

    @idempotent
    async def put_after_resets(self, key: str, runs: Path, resets: int) -> None:
        await asyncio.sleep(0)
        self._reset(runs, resets)
        self.put(key, "put")

    def add_after_resets(self, text: str, runs: Path, resets: int) -> int:
        self._reset(runs, resets)
        return self.add(text)

    async def have_appended_after_resets(self, name: str, text: str, runs: Path, resets: int) -> int:
        return int(await self.other(name).append_after_resets(text, runs, resets))

    @idempotent
    async def have_added_after_resets(self, name: str, runs: Path, runs_of_other: Path) -> None:
        self._reset(runs, 0)
        await self.other(name).add_after_resets("never", runs_of_other, 1)

    def _reset(self, runs: Path, resets: int) -> None:
        """Notes the run in a file, which outlives the reset, and has the object reset if it is one of the first."""
        with runs.open("a") as file:
            file.write(".")
        if runs.stat().st_size <= resets:
            self.roll_back_by_conflict("never")

    # -- storage

    @read
    def whoami(self) -> tuple[str, str, str]:
        return self.id.class_name, self.id.tenant, self.id.name

    def run(self, query: str, *binds: Any) -> list[tuple[Any, ...]]:
        return self.storage.sql(query, *binds)

    def nest(self, *names: str, undo: str) -> list[str]:
        """Opens a transaction for each name, within the one before; that of `undo` fails."""

        def open_from(position: int) -> None:
            if position == len(names):
                return
            name = names[position]
            try:
                with self.storage.transaction():
                    self.add(name)
                    self.storage.kv.put(name, True)
                    open_from(position + 1)
                    self.add(f"{name} end")
                    if name == undo:
                        raise Refusal("undo", 1)
            except Refusal:
                self.add(f"{name} undone")

        open_from(0)
        return [*self.lines(), *self.storage.kv.list()]

    def kv(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.storage.kv, method)(*args, **kwargs)

    def kv_and_raise(self, values: dict[str, Any]) -> None:
        self.storage.kv.put_many(values)
        raise Refusal("none of it", 1)

    @exactly_once
    def append_and_set_alarm(self, text: str, at: float) -> int:
        self.storage.set_alarm(at)
        return self.add(text)

    def size_bytes(self) -> int:
        return self.storage.size_bytes


class Starting(Notebook):
    """Reads something, and waits for it, before its first turn."""

    async def start(self) -> None:
        self.add("starting")
        await asyncio.sleep(0)
        self.add("started")


class Moody(Notebook):
    """Fails to start as often as it was told to, by a file: what it writes itself is undone."""

    @property
    def _failures(self) -> Path:
        return Path(self.id.name)

    async def start(self) -> None:
        self.add("starting")
        left = int(self._failures.read_text())
        if left:
            self._failures.write_text(str(left - 1))
            raise Refusal("not in the mood", left)


class NoAlarms(DurableObject):
    """Has no handler."""

    def set_alarm(self) -> None:
        self.storage.set_alarm(0)


CLASSES: tuple[type[DurableObject], ...] = (Notebook, Ledger, Desk, Starting, Moody, NoAlarms)


def desk_with(alarm: Callable[..., Any], **methods: Callable[..., Any]) -> type[Desk]:
    """A class called `Desk` whose handler is the test's own; for tests in process."""
    return type("Desk", (Desk,), {"alarm": alarm, **methods})
