"""How do turns of one object follow each other?

An `Activation` is one object as its host knows it: its mailbox, its gates, and, while it is resident, the instance with
its open storage. Turns run in order of arrival and never overlap, but for methods that say so. Plain methods that wait
together share one transaction, each behind a savepoint; their replies are held until it is committed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

from actors.runtime import sqlite
from actors.runtime.alarm_turn import AlarmTurn, commit_with_alarm, defer_alarm
from actors.runtime.author_code import AuthorCode
from actors.runtime.call import Reply, failed, raised, unpack_arguments
from actors.runtime.errors import DurableError, ObjectFailed, ObjectReset
from actors.runtime.gates import Gate
from actors.runtime.mailbox import Mailbox
from actors.runtime.object import DurableObject, MethodSpec, Repeat
from actors.runtime.object_id import ObjectId
from actors.runtime.plain_turn import run_in_group
from actors.runtime.services import HostServices
from actors.runtime.steps import StorageLost
from actors.runtime.storage import Storage
from actors.runtime.turn import PLAIN_TURN, Turn, TurnContext, context_of, current_turn
from actors.runtime.under_way import UnderWay

logger = logging.getLogger("mobula.objects")

_ALONE = MethodSpec(name="block_concurrency_while", function=lambda: None, is_async=True, repeat=Repeat.NEVER)


class Activation:
    """One object in its host. Not resident until its first turn; may be closed and opened again between turns."""

    __slots__ = (
        "_code",
        "_key",
        "_rested_since_s",
        "_services",
        "_slice_until_s",
        "_under_way",
        "_waits_for_gate",
        "_yielded",
        "held",
        "id",
        "input",
        "instance",
        "last_used_s",
        "mailbox",
        "output",
    )

    def __init__(self, object_id: ObjectId, services: HostServices) -> None:
        self.id = object_id
        self._key = str(object_id)
        self._services = services
        self._code = AuthorCode(object_id, services)
        self._under_way = UnderWay()
        self.instance: DurableObject | None = None
        self.mailbox = Mailbox(self._key, services.mailbox_age_max_s)
        self._waits_for_gate = self._yielded = False
        self._slice_until_s = 0.0
        self.input = Gate()
        self.output = Gate()
        self.last_used_s = services.clock.monotonic()
        #: When it had been used last as it was put to rest.
        self._rested_since_s = -math.inf
        #: Somebody keeps the object still: no turn begins, and the event is set when none is running any more.
        self.held: asyncio.Event | None = None

    @property
    def idle(self) -> bool:
        """No turn is running or waiting, no reply is held back, and nobody keeps the object still."""
        gates_open = self.input.is_open and self.output.is_open
        return not (self.mailbox or self.running) and gates_open and self.held is None

    @property
    def running(self) -> bool:
        return bool(self._under_way)

    def may_begin(self) -> bool:
        """Whether a turn may begin now; tells the one who keeps the object still if it is."""
        if self.held is None:
            return True
        if not self.running:
            self.held.set()
        return False

    @property
    def runnable(self) -> bool:
        """`run_waiting` would find something to run now."""
        return bool(
            not self._yielded
            and self.held is None
            and self.input.is_open
            and self.mailbox.has_next(beside_another=self._under_way.exclusive is not None)
        )

    def close(self) -> None:
        """Lets the object hibernate: closes its file, and forgets the instance."""
        instance, self.instance = self.instance, None
        if instance is not None:
            try:
                instance.storage.close()
            except (sqlite.Error, OSError) as error:
                # What was committed is in the WAL, and the next activation reads it there.
                logger.warning("object=%s closing failed: %s", self._key, error)

    def may_rest(self, unused_since_s: float) -> bool:
        """It is resident, was not used since then, and has not rested since it was."""
        used_s = self.last_used_s
        return used_s <= unused_since_s and used_s != self._rested_since_s and self.instance is not None and self.idle

    def rest(self) -> None:
        """Gives back memory until the next turn. The instance stays, and its file open."""
        assert self.instance is not None
        self._rested_since_s = self.last_used_s
        self.mailbox.rest()
        try:
            self.instance.storage.rest()
        except sqlite.Error as error:  # the object closed its file, or the disk fails: its next turn is told
            logger.warning("object=%s could not rest: %s", self._key, error)

    def abandon(self, reason: str) -> None:
        """Closes the object whatever it does. What runs and what waits is told the reason."""
        stopping = raised(self._key, ObjectReset(self._key, reason))
        self._under_way.abandon(stopping)
        self._refuse_waiting(stopping)
        self.close()

    def end(self, reason: str) -> None:
        """Ends what runs and what waits, which is told the reason, and drops the instance. What was committed stays."""
        if self.held is not None and not self.running:  # whoever keeps it still may have its file
            self._refuse_waiting(raised(self._key, ObjectReset(self._key, reason)))
        else:
            logger.warning("object=%s ended: %s", self._key, reason)
            self.abandon(reason)

    def _refuse_waiting(self, reply: Reply) -> None:
        for turn in self.mailbox.take_all():
            self._leave(turn, reply)

    # -- turns

    def run_waiting(self, *, goes_on: bool = False) -> list[Turn]:
        """Runs the plain methods at the head of the mailbox, in one transaction that is left open.

        Async methods are started as tasks, which have the host resume when they end.

        Args:
            goes_on: it has run just now, and committed: what is left of its slice is all that it gets.

        Returns:
            The turns whose replies are held until `commit`; empty if there is nothing to commit.
        """
        services = self._services
        held: list[Turn] = []
        now_s = services.clock.monotonic()
        if not goes_on:
            self._slice_until_s = now_s + services.slice_s
        elif now_s >= self._slice_until_s:
            self._yield()
            return held
        outside = current_turn.set(PLAIN_TURN)
        try:
            while self.mailbox:
                if not self.input.is_open:
                    self._resume_when_open()
                    break
                turn = self.mailbox.next(beside_another=self._under_way.exclusive is not None)
                if turn is None or (held and (turn.method.is_async or turn.is_alarm)):
                    break
                if self.instance is None and not self._activate():
                    continue
                self.mailbox.take(turn)
                if (refusal := self.mailbox.too_late(turn, now_s)) is not None:
                    self._leave(turn, raised(self._key, refusal))
                    continue
                instance = self.instance
                assert instance is not None
                if turn.is_alarm or turn.method.is_async:
                    self._start(instance, turn)
                elif not self._run_plain(instance, turn, held) or instance.storage.delete_requested:
                    break
                elif services.always_evict:
                    if held:
                        break  # the next turn is not to share its transaction
                    self._hibernate_always()
                if self.mailbox and services.clock.monotonic() >= self._slice_until_s:
                    self._yield()
                    break
        finally:
            current_turn.reset(outside)
        self.last_used_s = services.clock.monotonic()
        return held

    def begin_commit(self, begin: Callable[[ObjectId, Storage], Callable[[], None]] | None) -> Callable[[], None]:
        """Begins to make what turns wrote durable, as `begin` does it. Returns what waits until it is."""
        if self.instance is None:
            return _do_nothing
        storage = self.instance.storage
        # The index of alarms goes before it or after it, and belongs to the host's loop.
        in_place = storage.is_unwritten or storage.alarm.changed or storage.delete_requested
        if begin is None or in_place:
            return functools.partial(self._commit, storage)
        return begin(self.id, storage)

    def commit(self, held: list[Turn], committed: Callable[[], None]) -> None:
        """Lets the replies go once what `held` wrote is durable; or resets the object, and none of them leaves.

        Args:
            held: from `run_waiting`.
            committed: from `begin_commit`.
        """
        if self.instance is None:
            return
        try:
            committed()
        except DurableError as error:
            self._reset(error, held, self.instance)
            return
        self._hibernate_always()
        for turn in held:
            assert turn.held is not None
            self._leave(turn, turn.held)

    def _hibernate_always(self) -> None:
        if self._services.always_evict and not self.running:
            self.close()

    def _activate(self) -> bool:
        """Makes the instance. False if no turn can be run by it now; all that wait are told if none ever will."""
        try:
            self.instance = self._code.activate(lambda: self._services.open_object(self, self._services))
        except Exception as error:  # constructors and migrations are the author's code
            meaning = error if isinstance(error, DurableError) else None
            self._refuse_start(meaning or ObjectFailed(self._key, type(error).__name__, f"activation failed: {error}"))
            return False
        return self.input.is_open  # or it starts with something of its own

    def _refuse_start(self, meaning: DurableError) -> None:
        """Tells all who wait that it could not be made resident."""
        # Each of them would try it again, and what failed once would count as many times.
        if self.mailbox.has_alarm:
            defer_alarm(self.id, self._services, meaning)
        self._refuse_waiting(raised(self._key, meaning))

    def refuse_late(self) -> None:
        """Tells the calls that have waited for too long, also while the turn that they wait for does not end."""
        for turn, refusal in self.mailbox.take_late(self._services.clock.monotonic()):
            self._leave(turn, raised(self._key, refusal))

    def _leave(self, turn: Turn, reply: Reply) -> None:
        """Replies, as soon as the output gate is open."""
        if self.output.is_open:
            turn.settle(reply)
        else:
            self.output.when_open(lambda: turn.settle(reply))

    def _yield(self) -> None:
        """Lets other objects and what has arrived meanwhile come first."""
        self._yielded = True
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._yielded = False
        self._services.resume(self)

    def _resume_when_open(self) -> None:
        if not self._waits_for_gate:
            self._waits_for_gate = True
            self.input.when_open(self._gate_opened)

    def _gate_opened(self) -> None:
        self._waits_for_gate = False
        self._services.resume(self)

    # -- plain methods

    def _run_plain(self, instance: DurableObject, turn: Turn, held: list[Turn]) -> bool:
        """Runs one turn within the group's transaction. False if the group ended with it."""
        try:
            reply = run_in_group(self._key, self._code, instance, turn, held)
        except StorageLost as lost:
            self._reset(lost.error, [*held, turn], instance)
            held.clear()
            return False
        if reply is not None:
            self._leave(turn, reply)
        return True

    # -- async methods

    def _start(self, instance: DurableObject, turn: Turn) -> None:
        run = self._run_alarm if turn.is_alarm else self._run_async
        task = self._under_way.begin(turn, instance.storage, self._run(run, instance, turn))
        task.add_done_callback(functools.partial(self._ended, turn))

    async def _run(
        self,
        run: Callable[[DurableObject, Turn, TurnContext], Coroutine[Any, Any, None]],
        instance: DurableObject,
        turn: Turn,
    ) -> None:
        services = self._services
        context = context_of(self._key, turn, services.clock, self.output, services.alarm_timeout_s)
        current_turn.set(context)
        await run(instance, turn, context)
        context.ended = True
        self._code.survived(turn.method)
        self._over(turn)

    def _ended(self, turn: Turn, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before its first step: it can't tell that it is over
            self._over(turn)

    def _over(self, turn: Turn) -> None:
        self._under_way.over(turn)
        self._hibernate_always()
        self.last_used_s = self._services.clock.monotonic()
        self._services.resume(self)

    async def _run_async(self, instance: DurableObject, turn: Turn, context: TurnContext) -> None:
        try:
            args, kwargs = unpack_arguments(turn.arguments)
            coroutine = turn.method.function(instance, *args, **kwargs)
            reply = await self._code.in_steps(
                instance, turn.method, coroutine, self._code.pack, self._commit, gate=self.input
            )
        except Exception as error:  # whatever the author's method raises goes to the caller
            if (reset := self._lost(instance.storage, error)) is None:
                self._leave(turn, raised(self._key, error))
            else:
                self._reset(reset, [turn], instance, context)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as of plain methods
            if isinstance(error, asyncio.CancelledError):
                self._reset(ObjectReset(self._key, "the turn was cancelled"), [turn], instance, context)
            else:
                self._leave(turn, raised(self._key, failed(self._key, error)))
        else:
            self._leave(turn, reply)

    @staticmethod
    def _lost(storage: Storage, error: Exception) -> Exception | None:
        """What to reset the object with after `error` of an async method; None if only the method failed."""
        return error.error if isinstance(error, StorageLost) else storage.what_it_means(error)

    def run_alone(self, storage: Storage, callback: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Runs `callback` behind a shut input gate. The object is reset if it fails."""
        holding = ExitStack()
        holding.enter_context(self.input.hold())
        task = self._under_way.begin_alone(storage, self._run_alone(callback, starting=self.instance is None))

        def over(task: asyncio.Task[Any]) -> None:
            if not task.cancelled():
                task.exception()  # whoever awaits it is told as well; nobody need
            holding.close()
            self._services.resume(self)

        task.add_done_callback(over)
        return task

    async def _run_alone(self, callback: Callable[[], Coroutine[Any, Any, Any]], *, starting: bool) -> Any:
        instance = self.instance
        if instance is None:
            return None  # its activation failed
        timeout_s, clock = self._services.block_timeout_s, self._services.clock
        chain: tuple[str, ...] = (self._key,)
        left_s = timeout_s
        turn = current_turn.get()
        if not starting and turn is not None and turn.may_await and not turn.ended:
            chain, left_s = (*turn.chain, self._key), min(timeout_s, turn.left_s)
        # Its own: whoever called it may be interleaved, and one that it calls may not call the object back.
        context = TurnContext(chain, clock.monotonic() + left_s, clock, self.output)
        current_turn.set(context)
        try:
            async with asyncio.timeout(timeout_s) as limit:
                result = await self._code.in_steps(
                    instance,
                    _ALONE,
                    callback(),
                    lambda value: value,
                    self._commit_start if starting else self._commit,
                    gate=None,
                    is_over=limit.expired,
                )
        except KeyboardInterrupt:
            raise
        except BaseException as raised_error:  # of the author's callback; as of plain methods
            if isinstance(raised_error, asyncio.CancelledError) and self.instance is not instance:
                raise  # its host is stopping
            error = raised_error if isinstance(raised_error, Exception) else failed(self._key, raised_error)
            reason = f"no end within {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
            lost = self._lost(instance.storage, error)
            reset = lost or ObjectReset(self._key, f"block_concurrency_while failed: {type(error).__name__}: {reason}")
            self._reset(reset, [], instance, context)
            if starting:
                self._services.quarantine.activation_failed(self.id, error)
                self._refuse_start(self._meaning(reset))
            if isinstance(raised_error, (Exception, asyncio.CancelledError)):
                raise
            raise error from raised_error
        finally:
            context.ended = True
        if starting and self._services.quarantine.is_suspect(self.id):
            self._services.quarantine.activated(self.id)
        return result

    # -- alarms

    async def _run_alarm(self, instance: DurableObject, turn: Turn, context: TurnContext) -> None:
        """Runs the handler if the alarm is there and its time has come; else puts the index right."""
        storage, services = instance.storage, self._services
        alarm = AlarmTurn(self.id, instance, services, forced=turn.is_forced)
        limit = asyncio.timeout(services.alarm_timeout_s)
        try:
            async with limit:
                reply = await self._code.in_steps(
                    instance,
                    turn.method,
                    alarm.handle(),
                    self._code.pack,
                    self._commit,
                    gate=self.input,
                    is_over=limit.expired,
                )
        except Exception as error:  # whatever the author's handler raises
            if limit.expired() and isinstance(error, TimeoutError):
                error.args = (f"no end within {services.alarm_timeout_s:g} s",)
            reset = self._lost(storage, error)
            if reset is None and not (isinstance(error, DurableError) and error.retryable):
                reset = alarm.try_again(error, self._commit)
                self._leave(turn, raised(self._key, error))
            else:
                storage.alarm.in_flight = False
                defer_alarm(self.id, services, reset or error)
                self._leave(turn, raised(self._key, reset or error))
            if reset is not None:
                self._reset(reset, [turn], instance, context)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as of plain methods
            ended = ObjectReset(self._key, f"its alarm was ended by {type(error).__name__}")
            self._reset(ended, [turn], instance, context)
            defer_alarm(self.id, services, ended)
        else:
            if not storage.deleted:
                alarm.index_follows()
            self._leave(turn, reply)

    # -- durability

    def _commit(self, storage: Storage) -> None:
        """Makes the transaction durable, and the index of alarms follow it.

        Raises:
            ObjectReset, StorageFull: nothing of the transaction was kept, and this storage can't be used any more.
        """
        commit_with_alarm(self.id, storage, self._services)
        if storage.deleted:
            if self.instance is not None and self.instance.storage is storage:
                # Also where the turn goes on: those that run beside it are to meet the object that comes after.
                self.instance = None
            if self._services.quarantine.is_suspect(self.id):
                self._services.quarantine.release(self.id)

    def _commit_start(self, storage: Storage) -> None:
        storage.require_kept()
        self._commit(storage)

    def _reset(
        self, error: Exception, turns: list[Turn], instance: DurableObject, context: TurnContext | None = None
    ) -> None:
        """Drops the instance: nobody is told what was not kept, and the next turn starts from what is durable."""
        logger.warning("object=%s reset: %s", self._key, error)
        reply = raised(self._key, self._meaning(error))
        if context is not None:
            context.lost = True
        if self.instance is instance:  # else a turn that runs beside this one has dropped it before
            try:
                instance.storage.rollback()
            except sqlite.Error:
                logger.warning("object=%s could not roll back; the file is read again from its log", self._key)
            self.close()
            # The others wait for something, could write nothing after it, and would hold up who comes next.
            self._under_way.end_turns(reply, but=turns)
        for turn in turns:
            turn.settle(reply)

    def _meaning(self, error: Exception) -> DurableError:
        return error if isinstance(error, DurableError) else ObjectReset(self._key, f"the turn failed: {error}")


def _do_nothing() -> None:
    pass
