"""How are durable classes of one's own tested?

In one process, on files in a folder of the test's own, with a clock that only the test moves:

    async with Lab([Counter], always_evict=True) as lab:
        visits = lab.get(Counter, "acme", "visits")
        await visits.add(1)
        await lab.advance(3600)     # fires what falls due on the way

The objects run as they do in a service, behind the same stubs and on the same files. A test can fire alarms, evict
objects, have commits fail, hold replies back, and lose the host. Only the clock that objects see, and their alarms, are
virtual: what a class waits for by itself (`asyncio.sleep`, the network) takes the time it takes, and so do limits on
calls and on `block_concurrency_while`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from actors.runtime import sqlite
from actors.runtime.alarm import TABLE as ALARM_TABLE
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import Call, HostLost, Reply, unpack
from actors.runtime.clock import ManualClock
from actors.runtime.errors import ObjectReset
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Class, Namespace, Stub
from actors.runtime.object import ClassSpec, DurableObject
from actors.runtime.object_id import ObjectId
from actors.runtime.storage import Storage
from actors.runtime.turn import CALL_TIMEOUT_S

#: Alarms that one `advance` fires. More come from a handler that sets its alarm to the time it is.
ALARMS_FIRED_MAX = 10_000
#: What `advance` and `fire_alarm` wait for an alarm to be over, in real time.
ALARM_OVER_WITHIN_S = 30.0


class Lab:
    """Objects in this process, in the hands of a test. Belongs to the event loop that entered it.

    Args:
        classes: the durable classes.
        always_evict: objects hibernate after each of their turns: what they did not store is lost.
        data_dir: where everything is kept; a folder that is removed in the end, if none is given.
        now: what time it is, in seconds since 1970.
        settings: limits of the host.
        chance: what spreads retries, from 0 to 1.
    """

    def __init__(
        self,
        classes: Iterable[type[DurableObject]],
        *,
        always_evict: bool = False,
        data_dir: Path | None = None,
        now: float = 1_000_000_000.0,
        settings: HostSettings | None = None,
        chance: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.clock = ManualClock(now)
        self._classes = list(classes)
        self._always_evict = always_evict
        self._settings = settings or HostSettings(slots=4)
        self._chance = chance
        self._given_dir = data_dir
        self._images = 0
        #: What is to become of the next commit of an object.
        self._faults: dict[ObjectId, Callable[[Callable[[], None]], None]] = {}
        self._objects: LocalBackend | None = None

    async def __aenter__(self) -> Lab:
        self._folder = tempfile.TemporaryDirectory(prefix="mobula-lab-")
        self._data_dir = self._given_dir or Path(self._folder.name) / "data"
        self._loop = asyncio.get_running_loop()
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._objects is not None:
            self._objects.close()
            self._objects = None
        self._folder.cleanup()

    # -- objects

    def get(
        self, durable_class: type[Class], tenant: str, name: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Stub[Class]:
        """A stub, as `namespace(durable_class).get(...)` gives it. It outlives the host."""
        return self.namespace(durable_class).get(tenant, name, timeout_s=timeout_s)

    def namespace(self, durable_class: type[Class]) -> Namespace[Class]:
        return Namespace(self, ClassSpec(durable_class))

    async def ready(self) -> None:
        """At once. With `namespace` it makes a lab what a program is given that uses objects."""

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        objects = self._running
        reply = await objects.send(object_id, call)
        if self._objects is not objects:
            raise HostLost("lab", "its host was lost")
        return reply

    def send_ref(self, object_id: ObjectId, call: Call) -> NoReturn:
        self._running.send_ref(object_id, call)

    # -- time

    async def advance(self, seconds: float) -> None:
        """Lets time pass. Alarms that fall due are fired in order, each at its time and when those before are over.

        What a handler raises is logged, and the alarm tried again, as ever.
        """
        until = self.clock.now() + seconds
        fired = 0
        while True:
            async with asyncio.timeout(ALARM_OVER_WITHIN_S):
                while turns := self._running.host.fire_due():
                    fired += len(turns)
                    for turn in turns:
                        await turn.wait()
                    if fired > ALARMS_FIRED_MAX:
                        raise RuntimeError(f"more than {ALARMS_FIRED_MAX} alarms within {seconds:g} s")
            now, next_at = self.clock.now(), self._running.host.alarms.next_at
            if now >= until:
                return
            self.clock.advance((until if next_at is None else min(until, next_at)) - now)
            self._running.host.sweep()

    async def fire_alarm(self, stub: Stub[Any]) -> bool:
        """Runs the handler now, whenever the alarm is for. False if there is none. Raises what the handler raises."""
        async with asyncio.timeout(ALARM_OVER_WITHIN_S):
            return bool(unpack(await self._running.host.fire_alarm(stub.id, forced=True).wait()))

    def alarm_of(self, stub: Stub[Any]) -> float | None:
        """When the object's alarm is to be fired."""
        rows = self.sql(stub, f"SELECT at FROM {ALARM_TABLE}") if self.exists(stub) else []  # noqa: S608  a constant
        return float(rows[0][0]) if rows else None

    # -- what an object has stored

    def exists(self, stub: Stub[Any]) -> bool:
        """There is a file of the object."""
        return self._path(stub.id).exists()

    def sql(self, stub: Stub[Any], query: str, *binds: Any) -> list[tuple[Any, ...]]:
        """Asks what is durable, by a statement that may read any table. Runs nothing of the object.

        Raises:
            FileNotFoundError: there is no file of the object.
        """
        path = self._path(stub.id)
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            copy = Path(shutil.copy(path, folder))
            wal = sqlite.wal_of(path)
            if wal.exists():
                shutil.copy(wal, folder)
            connection = sqlite.connect(copy)
            try:
                connection.execute("PRAGMA query_only = ON")
                return list(connection.execute(query, binds).fetchall())
            finally:
                connection.close()

    # -- what may happen to an object

    def evict(self, stub: Stub[Any]) -> None:
        """Has the object hibernate now.

        Raises:
            RuntimeError: it has turns that run or wait, or replies that are held.
        """
        if not self._running.host.evict(stub.id):
            raise RuntimeError(f"{stub.id} is busy")

    def hold_turns(self, stub: Stub[Any]) -> AbstractContextManager[None]:
        """Within the block no turn of the object starts or goes on after an `await`."""
        return self._running.host.gates(stub.id)[0].hold()

    def hold_replies(self, stub: Stub[Any]) -> AbstractContextManager[None]:
        """Within the block no reply of the object leaves, and no call that it makes. Its turns run."""
        return self._running.host.gates(stub.id)[1].hold()

    def fail_next_commit(self, stub: Stub[Any], *, reached_disk: bool = False) -> None:
        """Has the next commit of the object fail, before or after the disk has it. Reading commits, too.

        A stub repeats what is declared safe to repeat; any other call raises `ObjectReset`.
        """

        def fail(commit: Callable[[], None]) -> None:
            if reached_disk:
                commit()
            raise ObjectReset(str(stub.id), "its commit failed, as the test wished")

        self._faults[stub.id] = fail

    # -- what may happen to its host

    def crash(self) -> None:
        """Loses the host, as `kill -9` would, and starts another on the files as they are now.

        Calls under way end as they do when a host is lost: what is safe to repeat is repeated.
        """
        self._lose(self._image())

    def restart(self) -> None:
        """Ends the host as a deployment does, and starts another."""
        self._running.close()
        self._open()

    def crash_in_next_commit(self, stub: Stub[Any], *, reached_disk: bool = False) -> None:
        """Loses the host in the next commit of the object, before or after the disk has it."""

        def crash(commit: Callable[[], None]) -> None:
            if reached_disk:
                commit()
            image = self._image()
            # From whichever thread commits, and not within a turn of the host that is lost. Nothing that it says from
            # here on reaches anybody.
            self._loop.call_soon_threadsafe(self._lose, image)
            raise ObjectReset(str(stub.id), "its host was lost in a commit, as the test wished")

        self._faults[stub.id] = crash

    # -- inside

    @property
    def _running(self) -> LocalBackend:
        if self._objects is None:
            raise RuntimeError("a lab is used within its `async with`")
        return self._objects

    def _open(self) -> None:
        self._objects = LocalBackend(
            self._data_dir,
            self._classes,
            settings=self._settings,
            clock=self.clock,
            chance=self._chance,
            commit=self._commit,
            keeps_time=False,
            always_evict=self._always_evict,
        )

    def _commit(self, object_id: ObjectId, storage: Storage) -> None:
        fault = self._faults.pop(object_id, None)
        if fault is None:
            storage.commit()
        else:
            fault(storage.commit)

    def _path(self, object_id: ObjectId) -> Path:
        return object_id.path(self._data_dir / "objects", self._settings.slots)

    def _image(self) -> Path:
        """The files as a crash at this moment would leave them."""
        self._images += 1
        image = Path(self._folder.name) / f"image-{self._images}"
        shutil.copytree(self._data_dir, image)
        return image

    def _lose(self, image: Path) -> None:
        # Closing it writes to files that nobody looks at any more.
        self._running.close()
        shutil.rmtree(self._data_dir)
        shutil.move(image, self._data_dir)
        self._open()
