"""Who runs objects, and how many at once?

An `ObjectHost` owns slots and runs the objects in them: it activates an object on its first call, lets its turns run
one at a time and those of different objects side by side, answers a batch of calls after one commit per object, and
lets idle objects hibernate. Nothing of Ray is in it; a Ray actor, or a test, holds one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from actors.runtime import sqlite
from actors.runtime.activation import Activation
from actors.runtime.alarms import AlarmIndex, entry_of
from actors.runtime.call import PENDING, Call, HostRetired, NotOwner, Reply, raised, returned, unpack
from actors.runtime.clock import Clock, SystemClock
from actors.runtime.commits import Commits
from actors.runtime.errors import DurableError, InvalidArgument, ObjectOverloaded
from actors.runtime.gates import Gate
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Objects
from actors.runtime.object import ClassSpec, MethodSpec, Repeat, by_name
from actors.runtime.object_files import files_in
from actors.runtime.object_id import ObjectId
from actors.runtime.opening import Opener
from actors.runtime.quarantine import Quarantine
from actors.runtime.residents import Residents
from actors.runtime.ringing import Ringing
from actors.runtime.running import RunningMark
from actors.runtime.schema import Schema
from actors.runtime.services import HostServices
from actors.runtime.spares import Spares
from actors.runtime.storage import Storage
from actors.runtime.tickets import Tickets
from actors.runtime.turn import Turn
from actors.runtime.watch import Watch

logger = logging.getLogger("mobula.objects")

#: Where the object could not be given its alarm: the host is full, or the disk fails.
_ALARM_AGAIN_AFTER_S = 1.0
#: Which part of a slice goes to objects that hibernate, before the loop turns to the calls that came.
HIBERNATION_PART = 4
_NO_METHOD = MethodSpec(name="", function=lambda: None, is_async=False, repeat=Repeat.NEVER)


class ObjectHost:
    """Runs the objects of the slots that its holder has locked. All methods belong to one event loop.

    Args:
        name: who this is, in logs and in what a rival for its slots is told.
        owns: whether the host owns an object; a call for another one is refused, never run.
        slots: those that the host's objects are in.
        objects: gives all objects, for those that call others.
        mark_path: where the host notes whose code it runs.
        code: names the code that the host runs.
        chance: numbers from 0 to 1, to spread retries.
        commit: makes a transaction of an object durable; a test may have it fail.
        keeps_time: fires alarms and lets idle objects hibernate. Else its holder calls `fire_due` and `sweep`.
        always_evict: objects hibernate after each of their turns, so that a test sees what they had not stored.
        judges: forgets what other code did, and records what objects do to it. Not where somebody just looks after
            them, with code that may be another's.
        spares: files for objects that are made; the host's from now on.
    """

    def __init__(
        self,
        *,
        name: str,
        data_dir: Path,
        classes: Iterable[ClassSpec],
        owns: Callable[[ObjectId], bool],
        slots: Iterable[int],
        objects: Callable[[], Objects],
        mark_path: Path,
        code: str,
        settings: HostSettings,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        commit: Callable[[ObjectId, Storage], None] | None = None,
        keeps_time: bool = True,
        always_evict: bool = False,
        judges: bool = True,
        spares: Spares | None = None,
    ) -> None:
        sqlite.require_version()
        self.name = name
        self._objects_dir = data_dir / "objects"
        self._classes: Mapping[str, ClassSpec] = by_name(classes)
        self._schemas = {spec.name: Schema(spec.durable_class.migrations) for spec in self._classes.values()}
        self._owns = owns
        self._slots = sorted(slots)
        self._settings = settings
        self._clock = clock or SystemClock()
        self.alarms = AlarmIndex(self._objects_dir, settings.slots, lambda: self._ringing.changed())
        self.quarantine = Quarantine(self._objects_dir, settings.slots, code=code, clock=self._clock, judges=judges)
        self._ringing = Ringing(
            self.alarms,
            self._clock,
            objects_max=settings.resident_objects_max,
            fire=self.fire_alarm,
            refused=lambda object_id: self.quarantine.refusal(object_id) is not None,
        )
        self._judges = judges
        self._spares = spares
        self._mark_path = mark_path
        self._watch = Watch(settings.slow_turn_ms)
        commit = commit or _commit
        self._commits = Commits(commit)
        self._services = HostServices(
            clock=self._clock,
            alarms=self.alarms,
            watch=self._watch,
            quarantine=self.quarantine,
            open_object=Opener(
                self._objects_dir,
                settings.slots,
                database_bytes_max=settings.database_bytes_max,
                classes=self._classes,
                schemas=self._schemas,
                objects=objects,
                spares=spares,
            ).open,
            commit=commit,
            resume=self._resume,
            chance=chance,
            mailbox_age_max_s=settings.mailbox_age_max_s,
            slice_s=settings.slice_ms / 1000,
            block_timeout_s=settings.block_timeout_s,
            alarm_timeout_s=settings.alarm_timeout_s,
            always_evict=always_evict,
        )
        self._keeps_time = keeps_time
        self._residents = Residents(
            name, settings.resident_objects_max, self._clock, make=self._make_activation, run=self._run
        )
        self._tickets = Tickets(self._clock)
        self._retired = self._loaded = False
        self._sweeping: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def load(self) -> None:
        """Finds what earlier hosts left of alarms and troubles. To be called once the host owns its slots.

        Raises:
            OSError: the disk fails. To be called again, before anything runs.
        """
        if self._loaded:
            return
        found = list(files_in(self._objects_dir, self._classes, self._slots))
        self.quarantine.load(found, self._owns)
        if self._watch.mark is None and self._judges:
            self._watch.mark = mark = RunningMark(self._mark_path)
            ran = mark.read()
            if ran is not None and self._owns(ran[0]):
                self.quarantine.crashed(*ran)
            mark.clear()
        self.alarms.load(path for path in found if self._is_mine(path))
        self._loaded = True

    @property
    def is_loaded(self) -> bool:
        return self._loaded

    def begin(self) -> None:
        """Has the running loop fire alarms and let objects hibernate from now on."""
        if self._keeps_time:
            self._sweep_later()
            self._ringing.begin()

    # -- calls

    def submit(self, calls: Iterable[Call]) -> list[Turn]:
        """Puts each call in its object's mailbox and runs what can run now, in order of arrival per object.

        Raises:
            HostRetired: the host is ending. None of the calls was run.
        """
        if self._retired:
            raise HostRetired
        turns: list[Turn] = []
        ready: dict[ObjectId, Activation] = {}
        now_s = self._clock.monotonic()
        for call in calls:
            turn, activation = self._accept(call, now_s, ready)
            turns.append(turn)
            if activation is not None:
                ready[activation.id] = activation
        self._run(ready.values())
        return turns

    async def batch(self, calls: list[Call]) -> list[Reply]:
        """As `answer`, for whoever awaits it."""
        return self.answer(calls)

    def answer(self, calls: list[Call]) -> list[Reply]:
        """Runs calls and replies to each that is done, once its writes are durable.

        A call that waits for something, or behind something that does, answers `PENDING` with a ticket, so that it
        holds up no other; `wait` gets its reply.
        """
        self.begin()
        replies: list[Reply] = []
        for turn in self.submit(calls):
            if turn.reply is None:
                replies.append((PENDING, self._tickets.give(turn)))
            else:
                replies.append(turn.reply)
        return replies

    async def wait(self, ticket: str) -> Reply:
        """The reply to a call that was `PENDING`.

        Raises:
            KeyError: no such ticket; it was collected, or the host that gave it is gone.
        """
        return await self._tickets.wait(ticket)

    async def call(self, call: Call) -> Any:
        """Runs one call and returns its result, or raises its error."""
        self.begin()
        (turn,) = self.submit([call])
        return unpack(await turn.wait())

    # -- alarms

    def fire_due(self) -> list[Turn]:
        """Puts alarms whose time has come into their objects' mailboxes, a few at a time."""
        return self._ringing.fire_due()

    def release(self, object_id: ObjectId) -> bool:
        """Ends the quarantine of an object. Says whether it was in one."""
        released = self.quarantine.release(object_id)
        self.alarms.rearm()
        self._ringing.changed()
        return released

    def fire_alarm(self, object_id: ObjectId, *, forced: bool = False) -> Turn:
        """Has the object's alarm handler run, if it has an alarm whose time has come.

        Args:
            object_id: of the object.
            forced: whether or not its time has come.
        """
        turn = Turn(_NO_METHOD, b"", "", self._clock.monotonic())
        turn.is_alarm, turn.is_forced = True, forced
        try:
            spec = self._classes.get(object_id.class_name)
            if spec is None:
                raise InvalidArgument("class", object_id.class_name, f"{self.name} knows no such durable class")
            turn.method = spec.alarm
            if not object_id.path(self._objects_dir, self._settings.slots).exists():
                # A crash came between the end of the object and that of its alarm.
                self.alarms.set(object_id, None)
                turn.settle(returned(False))
                return turn
            activation = self._residents.take((object_id.class_name, object_id.tenant, object_id.name), {})
        except NotOwner as error:
            turn.settle(raised(str(object_id), error))
            return turn
        except (DurableError, OSError) as error:
            self.alarms.defer(object_id, self._clock.now() + _ALARM_AGAIN_AFTER_S)
            turn.settle(raised(str(object_id), error))
            return turn
        if self._keeps_time:
            self._sweep_later()  # nobody may ever call it
        activation.mailbox.put(turn)
        self._run([activation])
        return turn

    def _is_mine(self, path: Path) -> bool:
        entry = entry_of(path.name)
        try:
            return entry is not None and self._owns(ObjectId.from_key(path.parent.parent.name, entry[0]))
        except InvalidArgument:
            return False  # nothing of ours

    # -- residence

    def gates(self, object_id: ObjectId) -> tuple[Gate, Gate]:
        """The input gate and the output gate of one object, for a test to hold.

        Raises:
            NotOwner, ObjectOverloaded: it can't run here, or not now.
        """
        activation = self._residents.take((object_id.class_name, object_id.tenant, object_id.name), {})
        return activation.input, activation.output

    @property
    def resident_objects(self) -> int:
        return sum(activation.instance is not None for activation in self._residents)

    def sweep(self) -> int:
        """Lets the objects that were idle for long enough hibernate, and others rest. Returns how many hibernate.

        Calls that have waited for too long are refused.
        """
        self._forget_late()
        left = self._residents.evict_idle(self._settings.idle_after_s, math.inf)
        self._residents.rest_unused(self._settings.rest_after_s, math.inf)
        return left

    @property
    def _sweep_pause_s(self) -> float:
        return min(1.0, self._settings.idle_after_s / 2)

    def _forget_late(self) -> None:
        for activation in self._residents:
            if activation.mailbox:
                activation.refuse_late()
        self._tickets.forget_uncollected()

    def _sweep_later(self, wait_s: float | None = None) -> None:
        """Has the loop that runs turns sweep as well, for as long as there is something to sweep."""
        loop = asyncio.get_running_loop()
        if self._sweeping is None or self._sweeping[0] is not loop:
            pause_s = self._sweep_pause_s if wait_s is None else wait_s
            self._sweeping = (loop, loop.call_later(pause_s, self._sweep_again))

    def _sweep_again(self) -> None:
        self._sweeping = None
        goes_on, slice_s = False, self._services.slice_s / HIBERNATION_PART
        begun_s = self._clock.monotonic()
        try:
            if not self._residents.are_leaving:
                self._forget_late()
            # Each file that is closed is written to, and synced: a thousand at once would take the loop for seconds.
            left = self._residents.evict_idle(self._settings.idle_after_s, slice_s)
            left_s = begun_s + slice_s - self._clock.monotonic()
            goes_on = self._residents.rest_unused(self._settings.rest_after_s, left_s) or left > 0
            if self._spares is not None and not goes_on:
                self._spares.refill()
        finally:
            if self._residents or self._tickets:
                self._sweep_later(slice_s if goes_on else None)

    def evict(self, object_id: ObjectId, *, force: bool = False) -> bool:
        """Lets one object hibernate now. False if it has turns running or waiting.

        Args:
            object_id: of the object.
            force: ends them with `ObjectReset`. What they have committed stays.
        """
        activation = self._residents.find(object_id)
        if activation is not None:
            if force and not activation.idle:
                activation.end("it was evicted by force")
            if activation.idle:
                self._residents.evict(activation)
            elif not force:
                return False
        return True

    @contextlib.asynccontextmanager
    async def hold(self, object_id: ObjectId, wait_s: float) -> AsyncIterator[Activation]:
        """Keeps an object still: no turn of it runs within, and it stays as resident as it is. Its calls wait.

        Raises:
            HostRetired, NotOwner: as calls do.
            ObjectOverloaded: a turn was still running after `wait_s`, or somebody else holds the object.
        """
        if self._retired:
            raise HostRetired
        activation = self._residents.take((object_id.class_name, object_id.tenant, object_id.name), {})
        if activation.held is not None:
            raise ObjectOverloaded(str(object_id), "somebody else is looking into it", 1.0)
        activation.held = asyncio.Event()
        try:
            if activation.running:
                try:
                    async with asyncio.timeout(wait_s):
                        await activation.held.wait()
                except TimeoutError:
                    raise ObjectOverloaded(str(object_id), f"a turn ran longer than {wait_s:g} s", 1.0) from None
                if self._retired:
                    raise HostRetired
            yield activation
        finally:
            activation.held = None
            if self._residents.find(activation.id) is activation:
                if activation.idle and activation.instance is None:
                    self._residents.evict(activation)
                else:
                    self._run([activation])

    def activation_of(self, object_id: ObjectId) -> Activation | None:
        """The object as the host knows it, if it does."""
        return self._residents.find(object_id)

    @property
    def schemas(self) -> Mapping[str, Schema]:
        """By the names of the classes."""
        return self._schemas

    def retire(self) -> bool:
        """Ends the host if it is idle: from now on every call is refused with `HostRetired`, unrun."""
        if self._residents.idle:
            self._retired = True
            self.close()
        return self._retired

    @property
    def idle_for_s(self) -> float:
        """Seconds since the last turn ended; 0 while there is one."""
        return self._residents.idle_for_s

    def close(self) -> None:
        """Closes every file, for good: no turn runs after it. What was acknowledged is durable without it."""
        self._retired = True
        self._ringing.close()
        if self._sweeping is not None:
            self._sweeping[1].cancel()
        self._residents.abandon("its host is stopping")
        self._commits.close()
        if self._spares is not None:
            self._spares.close()
        if self._watch.mark is not None:
            self._watch.mark.close(remove=True)

    # -- inside

    def _accept(self, call: Call, now_s: float, ready: dict[ObjectId, Activation]) -> tuple[Turn, Activation | None]:
        class_name, tenant, name, method_name, arguments, request_id, trail = call
        spec = self._classes.get(class_name)
        method = spec.methods.get(method_name) if spec else None
        turn = Turn(method or _NO_METHOD, arguments, request_id, now_s, trail)
        object_key = f"{class_name}/{tenant}:{name}"
        try:
            if spec is None:
                raise InvalidArgument("class", class_name, f"{self.name} knows no such durable class")
            if method is None:
                raise InvalidArgument("method", method_name, f"{class_name} has no such method")
            if len(arguments) > self._settings.mailbox_bytes_max:
                raise InvalidArgument(
                    "arguments", f"{len(arguments)} bytes", f"must take at most {self._settings.mailbox_bytes_max}"
                )
            activation = self._residents.take((class_name, tenant, name), ready)
            object_key = str(activation.id)
            if len(activation.mailbox) >= self._settings.mailbox_calls_max:
                raise ObjectOverloaded(object_key, f"{len(activation.mailbox)} calls are waiting", 1.0)
            if activation.mailbox.size_bytes + len(arguments) > self._settings.mailbox_bytes_max:
                raise ObjectOverloaded(object_key, f"{activation.mailbox.size_bytes} bytes are waiting", 1.0)
        except DurableError as error:
            turn.settle(raised(object_key, error))
            return turn, None
        activation.mailbox.put(turn)
        return turn, activation

    def _make_activation(self, object_id: ObjectId) -> Activation:
        if not self._owns(object_id):
            raise NotOwner(self.name, str(object_id))
        return Activation(object_id, self._services)

    def _run(self, activations: Iterable[Activation]) -> None:
        """Runs what waits: first the turns of every object, then every object's commit, then the replies leave."""
        waiting = [activation for activation in activations if activation.may_begin()]
        if waiting:
            self._residents.something_runs()
        goes_on = False
        while waiting:
            ran = [(activation, held) for activation in waiting if (held := activation.run_waiting(goes_on=goes_on))]
            # One alone is committed right here.
            begin = self._commits.begin if len(ran) > 1 else None
            committing = [(activation, held, activation.begin_commit(begin)) for activation, held in ran]
            self._commits.wait()
            for activation, held, committed in committing:
                activation.commit(held, committed)
            waiting, goes_on = [activation for activation in waiting if activation.runnable], True

    def _resume(self, activation: Activation) -> None:
        if not self._retired:
            self._run([activation])


def _commit(_: ObjectId, storage: Storage) -> None:
    storage.commit()
