"""Which process answers questions?

A question becomes a turn in its session's ledger, and the replica that put it there runs it, as a task that no client's
going away can end. Who wants the answer follows the turn's events in the session. A turn whose replica is lost comes by
way of the queue to another one; a replica that is stopped first ends its turns, or gives them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from actors import ChatSession, DurableError, InvalidArgument, ObjectNotFound, Objects, TurnQueue
from actors.directory import SessionMetadata
from actors.message import instructions_in
from actors.runtime.namespace import Stub
from actors.turn import INSTRUCTIONS_TOO_LONG, Begun, Claim, NewTurn, Older
from actors.turn_queue import QUEUE_NAME, QUEUE_TENANT
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments.activity import ActivityLog
from deployments.allowances import Allowances
from deployments.answers import Answers
from deployments.chat_door import BUSY_RETRY_AFTER_S, ChatDoor
from deployments.errors import BudgetExceeded, BudgetTooSmall, ModelUnavailable, ServiceError, TooManyTurns
from deployments.limit_changes import LimitChanges
from deployments.limit_counts import TELL_EVERY_S, LimitCounts, Outcome
from deployments.limit_metric import counter
from deployments.live_limits import LiveLimits
from deployments.model_client import ModelClient, Models
from deployments.prompt import Prompt
from deployments.question import Asked, Question, can_be_gone_on_with, new_turn_id
from deployments.sessions import Sessions
from deployments.tenant_files import TenantFiles
from deployments.token_count import size_bytes_of
from deployments.turn_allowance import FirstCall, TurnAllowance
from deployments.turn_runner import LOST_PAUSE_S, TurnRunner

logger = logging.getLogger("mobula.chat")

#: Turns under way or waiting in one replica, listened to or not.
TURNS_AT_ONCE_MAX = 256
#: A request to a model is on its way by then, where nothing has to be found for it first.
MODEL_ASKED_WITHIN_S = 0.005
#: How long a replica that is stopped lets its turns go on, and then waits for what is left of them to be written down.
DRAIN_S = 25.0
GIVE_BACK_S = 5.0
#: And for what turns have given back to be told; what is not told lapses.
TELL_S = 2.0


class Chat:
    """Begins turns, and runs them."""

    def __init__(
        self,
        *,
        config: ServiceConfig,
        connect: Callable[[], Objects],
        tenants: Mapping[str, TenantConfig],
        model: Models,
        search: DeploymentHandle,
        count: Callable[[Outcome, str, str, int], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._objects = connect()
        self._queue = self._objects.namespace(TurnQueue).get(QUEUE_TENANT, QUEUE_NAME)
        self._activity = ActivityLog(self._objects)
        self._sessions = Sessions(self._objects, tenants, self._activity, now)
        self._tenants = tenants
        self._answers = Answers(objects=self._objects, tenants=tenants, model=model, search=search)
        self._runner = TurnRunner(tenants=tenants, answers=self._answers, activity=self._activity)
        self._model = model
        self._counts = LimitCounts(count)
        limits = LiveLimits(tenants)
        # Nothing is remembered of clients here.
        self._limit_changes = LimitChanges(
            self._objects,
            TenantFiles(config, tenants),
            limits,
            (),
            reader=secrets.token_hex(8),
            monotonic=time.monotonic,
        )
        self._allowances = Allowances(self._objects, tenants, model, limits, self._counts)
        self._running: set[asyncio.Task[None]] = set()
        #: What goes on beside questions.
        self._beside: dict[Callable[[], Coroutine[Any, Any, None]], asyncio.Task[None]] = {}

    async def begin(self, question: Question) -> Asked:
        """Enters the question's turn into its session, and has it run. Returns at once.

        Raises:
            DurableError, ServiceError: nothing was begun.
        """
        if len(self._running) >= TURNS_AT_ONCE_MAX:
            raise ModelUnavailable("too many answers are under way", BUSY_RETRY_AFTER_S)
        tenant = self._tenants[question.tenant]
        made: Prompt | None = None
        if question.message is not None:
            # Checked before anything is made for it; with a history, the history gives way, but for how it begins.
            made = await self._checked(question, [] if question.session_id else instructions_in(question.leading))
        new, runner = self._new_turn(question, tenant), secrets.token_hex(8)
        allowance = await self._allowance(question, tenant, new, runner, made)
        try:
            session_id, begun, listed = await self._enter(question, new, runner, made)
        except (DurableError, ServiceError):
            if allowance is not None:
                await allowance.withdraw()
            raise
        except asyncio.CancelledError:
            if allowance is not None:
                allowance.close()
            raise
        is_listed = asyncio.Event()
        # First: the answer need wait neither for a listing, nor for what this process does to reply.
        self._take_up(question.tenant, session_id, new, runner, begun, allowance, is_listed.is_set)
        if begun["claim"] is not None and not question.retrieve:
            await asyncio.sleep(MODEL_ASKED_WITHIN_S)
        if listed is not None:
            try:
                await self._sessions.enlist(question.tenant, listed)
                is_listed.set()
            except DurableError as error:  # the session will see to it
                logger.warning("tenant=%s listing lags behind: %s", question.tenant, error)
        return Asked(session_id=session_id, turn_id=begun["turn"]["id"], joined=begun["joined"])

    async def _allowance(
        self, question: Question, tenant: TenantConfig, new: NewTurn, runner: str, made: Prompt | None
    ) -> TurnAllowance | None:
        """What the turn may use; None: what it likes, or nothing since it was begun before.

        Raises:
            TooManyTurns, BudgetExceeded, BudgetTooSmall: it may not begin.
        """
        if not self._allowances.is_limited(question.tenant):
            return None
        first = FirstCall(
            messages=() if made is None else made.messages,
            max_tokens=tenant.model.answer_tokens(question.max_tokens),
            # Else there are a history, documents or tools, or an older question takes the place of this one.
            is_whole=made is not None
            and question.session_id is None
            and not (question.leading or question.retrieve or question.functions or tenant.tools.enabled),
        )
        try:
            return await self._allowances.admit(question.tenant, new["turn_id"], runner, question.asker, first)
        except (TooManyTurns, BudgetExceeded, BudgetTooSmall):
            if await self._has_begun(question, new):
                return None
            raise

    async def _has_begun(self, question: Question, new: NewTurn) -> bool:
        """The same request has begun a turn before, which it joins."""
        session_id = question.session_id or question.new_session_id
        if session_id is None or (question.key is None and question.turn_id is None):
            return False
        try:
            return bool(await self._sessions.get(question.tenant, session_id).has_begun(new["turn_id"], new["key"]))
        except ObjectNotFound:
            return False

    async def _checked(self, question: Question, instructions: list[str]) -> Prompt:
        """What the model is told at least, where the session begins with these.

        Raises:
            InvalidArgument: it does not fit.
        """
        assert question.message is not None, "nothing is known of what was asked before"
        led_by: Older = {"instructions": instructions, "turns": 0, "messages": 0, "size_bytes": 0}
        return await self._answers.prompt(question.tenant, question.message, question.request(), older=led_by)

    async def _enter(
        self, question: Question, new: NewTurn, runner: str, made: Prompt | None
    ) -> tuple[str, Begun, SessionMetadata | None]:
        """Has the session know of the turn. Returns its id, with what a listing is to show of it where it was made."""
        if question.session_id is not None:
            session = self._sessions.get(question.tenant, question.session_id)
            if made is not None:
                bytes_max = self._answers.instructions_bytes_max(question.tenant, new["request"], made)
                new = {**new, "instructions_bytes_max": bytes_max}
            try:
                begun: Begun = await session.begin(new, runner)
            except InvalidArgument as error:
                if error.code != INSTRUCTIONS_TOO_LONG:
                    raise
                # It was an estimate.
                instructions: list[str] = await session.instructions(new["leading"])
                await self._checked(question, instructions)
                bytes_max = sum(map(size_bytes_of, instructions))
                begun = await session.begin({**new, "instructions_bytes_max": bytes_max}, runner)
            return question.session_id, begun, None
        opened = await self._sessions.open(
            question.tenant, new, runner, session_id=question.new_session_id, user_id=question.user_id
        )
        return opened["session"]["id"], opened["begun"], opened["session"]

    def _take_up(
        self,
        tenant: str,
        session_id: str,
        new: NewTurn,
        runner: str,
        begun: Begun,
        allowance: TurnAllowance | None,
        is_listed: Callable[[], bool],
    ) -> None:
        turn = begun["turn"]
        # A turn that another request began has its runner.
        is_own = turn["id"] == new["turn_id"]
        if begun["joined"]:
            if allowance is not None and not is_own:
                allowance.close()
            # That of a turn which was begun before is its runner's, or lapses.
            allowance = self._allowances.taken_over(tenant, turn["id"], runner)
        if begun["claim"] is not None or (turn["status"] == "queued" and is_own):
            session = self._sessions.get(tenant, session_id)
            self._start(self._run(session, turn["id"], runner, begun["claim"], allowance, is_listed))

    async def check_health(self) -> None:
        """Called by Serve all the while: the first time, and if it should have ended, begins to take lost turns.

        So with whatever else goes on beside questions.
        """
        for work in (self._take, self._tell_counts, self._limit_changes.listen, self._limit_changes.watch):
            if work not in self._beside or self._beside[work].done():
                task = asyncio.get_running_loop().create_task(work(), context=contextvars.Context())
                self._beside[work] = task

    async def ready(self) -> bool:
        """Raises what keeps the model from being asked."""
        return await self._model.ready()

    async def drain(self, within_s: float = DRAIN_S) -> None:
        """Takes no more lost turns, lets those that run come to their end, and then ends them or gives them back."""
        for task in self._beside.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)
        self._runner.end()
        if self._running:
            await asyncio.wait(self._running, timeout=GIVE_BACK_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                await self._allowances.told()
        self._counts.flush()

    def _new_turn(self, question: Question, tenant: TenantConfig) -> NewTurn:
        settings, request = tenant.turns, question.request()
        return {
            "turn_id": question.turn_id or new_turn_id(),
            "message": question.message,
            "leading": question.leading,
            "replace": question.replace,
            "follows": question.follows,
            "model": tenant.model.name,
            "request": request,
            "key": question.key,
            "on_conflict": question.on_conflict or settings.on_conflict,
            "limits": {
                "queue_max": settings.queue_max,
                "attempts_max": settings.attempts_max,
                "continues": tenant.model.continues_answers and can_be_gone_on_with(request),
                "events_kept_s": settings.events_kept_s,
                "broken_events_kept_s": settings.broken_events_kept_s,
            },
        }

    def _start(self, run: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: Serve ends every call made in a request's context when its client goes away.
        task = asyncio.get_running_loop().create_task(run, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(
        self,
        session: Stub[ChatSession],
        turn_id: str,
        runner: str,
        claim: Claim | None,
        allowance: TurnAllowance | None,
        is_listed: Callable[[], bool] = lambda: False,
    ) -> None:
        if allowance is not None:
            allowance.hold()
        is_over = False
        try:
            is_over = not await self._runner.run(session, turn_id, runner, claim, allowance, is_listed)
            if not is_over:
                # Its session would offer it as well, and takes a while to see that nobody asks for it.
                await self._queue.offer(session.id.tenant, session.id.name, turn_id)
        except ObjectNotFound:
            is_over = True  # the session was deleted, or has expired
        except Exception:  # the session takes it for lost, and has it run again or ends it
            logger.exception("tenant=%s turn=%s left to be found", session.id.tenant, turn_id)
        finally:
            if allowance is not None:
                allowance.close(is_over=is_over)

    async def _take(self) -> None:
        """Takes lost turns, for as long as the replica lives."""
        while True:
            if len(self._running) >= TURNS_AT_ONCE_MAX:
                await asyncio.sleep(BUSY_RETRY_AFTER_S)
                continue
            try:
                orphan = await self._queue.take()
            except DurableError as error:
                logger.warning("the queue of turns is not reached: %s", error)
                await asyncio.sleep(error.retry_after_s or LOST_PAUSE_S)
                continue
            if orphan is not None and orphan["tenant"] in self._tenants:
                session = self._sessions.get(orphan["tenant"], orphan["session_id"])
                turn_id, runner = orphan["turn_id"], secrets.token_hex(8)
                allowance = self._allowances.taken_over(orphan["tenant"], turn_id, runner)
                self._start(self._run(session, turn_id, runner, None, allowance))

    async def _tell_counts(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            self._counts.flush()


class ChatReplica(Chat):
    """As Serve runs it, and with a door."""

    def __init__(
        self,
        *,
        config: ServiceConfig,
        connect: Callable[[], Objects],
        tenants: Mapping[str, TenantConfig],
        model: DeploymentHandle,
        search: DeploymentHandle,
    ) -> None:
        super().__init__(
            config=config,
            connect=connect,
            tenants=tenants,
            model=ModelClient.here(model),
            search=search,
            count=counter(),
        )
        self._door = ChatDoor(config.data_dir / "doors", self.begin, TURNS_AT_ONCE_MAX)

    async def door(self) -> str | None:
        """Where the replica is reached by who is on the same machine; None if it can't be."""
        path = self._door.open()
        return None if path is None else str(path)

    async def __del__(self) -> None:
        # Serve awaits it, before it ends the replica.
        self._door.close()
        await self.drain()


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
ChatDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=TURNS_AT_ONCE_MAX,
    max_queued_requests=TURNS_AT_ONCE_MAX,
    ray_actor_options={"num_cpus": 0.2},
    graceful_shutdown_timeout_s=DRAIN_S + GIVE_BACK_S + 5,
)(ChatReplica)
