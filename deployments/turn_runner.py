"""How is a claimed turn run to its end?

What is made of an answer is written into the session as it comes. A runner tells the session all the while that it
lives, and stops when the session says so. Whatever happens, it ends the turn, gives it back to be run again, or loses
it to whoever the session takes for alive. What was shown of an answer is kept, however it ended. A turn of whose answer
nothing was shown, or that its model can go on with, is tried again where that may help.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from ray.exceptions import RayError

from actors import ChatSession, DurableError, InvalidArgument, ObjectNotFound
from actors.runtime.namespace import Stub
from actors.session_views import Ended
from actors.turn import Claim, FinalStatus, TurnError
from configs.tenant import TenantConfig
from deployments.activity import ActivityLog
from deployments.answers import Answer, Answers
from deployments.chat_request import Finished
from deployments.errors import (
    BudgetExceeded,
    BudgetTooSmall,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    ServiceError,
)
from deployments.question import can_be_gone_on_with
from deployments.turn_allowance import TurnAllowance
from deployments.turn_writer import Pace, TurnWriter

logger = logging.getLogger("mobula.chat")

#: How long the session is asked at a time whether the turn goes on; it takes a runner for dead after several of these.
ATTEND_S = 3.0
#: How long the session is asked at a time whether a turn's time has come. Shorter than a stopped replica's last wait.
CLAIM_WAIT_S = 3.0
#: A model that wants to be left alone for longer is not waited for.
RETRY_PAUSE_MAX_S = 5.0
LOST_PAUSE_S = 1.0
#: How long a session that can't be reached is told of a turn's end.
CONCLUDE_WITHIN_S = 30.0

Result = TypeVar("Result")

RUNNER_STOPPED: TurnError = {
    "code": "RunnerStopped",
    "message": "the process that was answering was stopped",
    "retryable": True,
    "retry_after_s": LOST_PAUSE_S,
}


class TurnRunner:
    """Runs turns of any session."""

    def __init__(
        self,
        *,
        tenants: Mapping[str, TenantConfig],
        answers: Answers,
        activity: ActivityLog,
    ) -> None:
        self._tenants = tenants
        self._answers = answers
        self._activity = activity
        self._pace = Pace()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Has every turn end now: those that another can begin or go on with are given back, the others keep theirs."""
        self._ending.set()

    async def run(
        self,
        session: Stub[ChatSession],
        turn_id: str,
        runner: str,
        claim: Claim | None,
        allowance: TurnAllowance | None = None,
        is_listed: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Runs the turn when its time has come, as often as it may be tried, unless another runs it.

        Args:
            is_listed: whether somebody has entered the session into the directory, which it is told at the turn's end.

        Returns whether it is left for another runner, which should be told of it.
        """
        while True:
            while claim is None:
                if self._ending.is_set():
                    return True
                claiming = await session.claim(turn_id, runner, CLAIM_WAIT_S)
                claim = claiming["claim"]
                if claim is None and claiming["turn"]["status"] != "queued":
                    return False
            if self._ending.is_set():
                await session.release(turn_id, claim["attempt"], RUNNER_STOPPED["code"])
                return True
            pause_s = await self._attempt(session, claim, allowance, is_listed)
            if pause_s is None:
                return False
            claim = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._ending.wait()

    async def _attempt(
        self,
        session: Stub[ChatSession],
        claim: Claim,
        allowance: TurnAllowance | None,
        is_listed: Callable[[], bool],
    ) -> float | None:
        """Returns the pause after which the turn is to be claimed again; None if it is over."""
        turn_id, attempt = claim["turn_id"], claim["attempt"]
        writer = TurnWriter(session, claim, pace=self._pace)
        failure: Exception | None = None
        finished: Finished | None = None
        loop = asyncio.get_running_loop()
        answer = self._answers.to(session.id.tenant, session.id.name, claim, writer, allowance)
        writer.start(lambda: answer.usage)
        work = loop.create_task(answer.make())
        others = [
            loop.create_task(self._attend(session, turn_id, attempt, writer)),
            loop.create_task(writer.stopped.wait()),
            loop.create_task(self._ending.wait()),
        ]
        try:
            await asyncio.wait({work, *others[1:]}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                finished = work.result()
            else:
                failure = writer.failure
        except Exception as error:  # whatever it was, the turn has to end
            failure = error
        finally:
            await _cancelled(work, *others)
        await writer.close()
        try:
            return await self._conclude(session, claim, writer, answer, finished, failure, is_listed)
        except ObjectNotFound:
            return None  # the session was deleted, or has expired

    async def _conclude(
        self,
        session: Stub[ChatSession],
        claim: Claim,
        writer: TurnWriter,
        answer: Answer,
        finished: Finished | None,
        failure: Exception | None,
        is_listed: Callable[[], bool],
    ) -> float | None:
        turn_id, attempt = claim["turn_id"], claim["attempt"]
        after, rest = writer.take_rest()
        error: TurnError | None = None
        status: FinalStatus = "completed"
        if failure is not None:
            error = self._told(session, turn_id, failure)
        elif finished is None and not writer.stopped.is_set():
            error = RUNNER_STOPPED
        elif finished is None:
            status = "cancelled"
        if error is not None:
            status = "incomplete" if writer.has_content else "failed"
            if self._may_go_on(session.id.tenant, claim, writer) and (failure is None or self._may_retry(failure)):
                await _insist(lambda: session.record(turn_id, attempt, after, rest, answer.usage))
                is_ours = await _insist(lambda: session.release(turn_id, attempt, error["code"]))
                return (error["retry_after_s"] or LOST_PAUSE_S) if is_ours else None
        ended: Ended = await _insist(
            lambda: session.finish(
                turn_id,
                attempt,
                after,
                rest,
                status,
                finish_reason=finished.finish_reason if finished is not None else None,
                usage=answer.usage,
                error=error,
                is_listed=is_listed(),
            )
        )
        self._activity.note(session.id.tenant, session.id.name, ended)
        return None

    def _told(self, session: Stub[ChatSession], turn_id: str, failure: Exception) -> TurnError:
        if not isinstance(getattr(failure, "cause", failure), DurableError | ServiceError | RayError):
            logger.error("tenant=%s turn=%s failed", session.id.tenant, turn_id, exc_info=failure)
        return as_error(known(failure))

    def _may_go_on(self, tenant: str, claim: Claim, writer: TurnWriter) -> bool:
        """The turn may be begun again, as nobody would notice, or its answer gone on from."""
        settings = self._tenants[tenant]
        continues = settings.model.continues_answers and can_be_gone_on_with(claim["request"])
        return claim["attempt"] < settings.turns.attempts_max and (
            not writer.has_content or (continues and not writer.has_calls)
        )

    def _may_retry(self, failure: Exception) -> bool:
        error = known(failure)
        return (
            bool(getattr(error, "retryable", False))
            # Whoever asked has waited for long enough; and of what a budget denies, somebody else needs it more.
            and not isinstance(error, ModelTimeout | BudgetExceeded)
            and (getattr(error, "retry_after_s", None) or LOST_PAUSE_S) <= RETRY_PAUSE_MAX_S
        )

    async def _attend(self, session: Stub[ChatSession], turn_id: str, attempt: int, writer: TurnWriter) -> None:
        # What is written asks as well, and the start of an answer waits for nothing that can wait.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ATTEND_S):
                await writer.has_written.wait()
        while not writer.stopped.is_set():
            try:
                if not await session.attend(turn_id, attempt, ATTEND_S):
                    writer.stopped.set()
            except ObjectNotFound:
                writer.stopped.set()
            except DurableError as error:
                # The claim lapses if this goes on, and then the session says so.
                logger.warning("tenant=%s turn=%s session not reached: %s", session.id.tenant, turn_id, error)
                await asyncio.sleep(LOST_PAUSE_S)


async def _insist(call: Callable[[], Awaitable[Result]]) -> Result:
    """Calls again where that may help: what a turn has come to is not lost with one call."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + CONCLUDE_WITHIN_S
    while True:
        try:
            return await call()
        except DurableError as error:
            if not error.retryable or loop.time() >= give_up_s:
                raise
            await asyncio.sleep(error.retry_after_s or LOST_PAUSE_S)


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    # Their errors were seen, or are of no more interest.
    await asyncio.gather(*tasks, return_exceptions=True)


def known(error: Exception) -> Exception:
    """The error as one of ours: Ray raises mixtures, and its own where a part of the service was lost."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DurableError | ServiceError):
        return cause
    if isinstance(error, DurableError | ServiceError):
        return error
    if isinstance(error, RayError):
        return ModelUnavailable("a part of the service was lost", LOST_PAUSE_S)
    return ModelUnavailable("the turn failed", LOST_PAUSE_S)


def as_error(error: Exception) -> TurnError:
    """An error for a client: nothing of paths, processes or objects, which other errors' texts name."""
    retryable = bool(getattr(error, "retryable", False))
    match error:
        case ModelError() | BudgetExceeded() | BudgetTooSmall():
            message = str(error)
        case InvalidArgument():
            message = f"{error.field} {error.problem}"
        case ObjectNotFound():
            message = "the session was deleted or has expired"
        case _ if retryable:
            message = "a part of the service is busy or restarting"
        case _:
            message = "the turn failed"
    is_known = isinstance(error, InvalidArgument | ModelRefused) and error.code == ModelRefused.CONTEXT_LENGTH
    told: TurnError = {
        # The one of those that programs act on, such as by saying less.
        "code": ModelRefused.CONTEXT_LENGTH if is_known else type(error).__name__,
        "message": message,
        "retryable": retryable,
        "retry_after_s": getattr(error, "retry_after_s", None),
    }
    if isinstance(error, BudgetExceeded | BudgetTooSmall):
        told["violated_policies"] = list(error.policies)
    return told


def as_raised(told: Mapping[str, Any]) -> ServiceError:
    """The same for who has waited for the whole answer, of which there is nothing."""
    if told["code"] == BudgetExceeded.__name__:
        return BudgetExceeded(tuple(told["violated_policies"]), told["retry_after_s"])
    if told["retryable"]:
        return ModelUnavailable(told["message"], told["retry_after_s"] or LOST_PAUSE_S)
    return ModelRefused(told["message"], told["code"])
