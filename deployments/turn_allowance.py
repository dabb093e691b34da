"""What may one turn use, and who says so?

Its tenant's `TokenUsage`, asked by whoever runs the turn. Before it begins, the turn gets a lease, as one of those in
flight, and is promised the tokens of its first call of the model; or it gets neither, and is not begun. Before each
further call its tokens are promised as well. What a call has used is told when it has ended, however that was.

The first call mostly costs no further question: what a prompt can come to at most is known before it is made. Nobody
waits for what is told after a call, nor for the lease's renewals. What is lost of all that lapses.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from actors import DurableError, ObjectOverloaded, TokenUsage
from actors.runtime.namespace import Namespace
from actors.token_budget import Budget, Ruling
from actors.token_reservations import Promise
from actors.token_usage import TURNS_PER_CLIENT, TURNS_PER_TENANT, USAGE_NAME, Verdict
from actors.turn_leases import LEASE_S, Concurrency
from deployments.call_usage import CallUsage
from deployments.chat_request import ChatMessage, ChatRequest, ModelEvent, ToolSpec
from deployments.errors import BudgetExceeded, BudgetTooSmall, TooManyTurns
from deployments.generation import Stream
from deployments.limit_counts import BUDGETS, LimitCounts
from deployments.prompt_size import PromptSize
from deployments.token_count import TokenCounter

logger = logging.getLogger("mobula.allowances")

#: A lease outlives two renewals that fail.
RENEW_EVERY_S = LEASE_S / 3
#: What a promise lasts longer than the model may take: what passes until that is asked, and until it is told.
PROMISE_MARGIN_S = 30.0
#: The call that a turn is admitted with. Others are numbered by attempts, from 1.
FIRST_CALL = 0
CALLS_PER_ATTEMPT_MAX = 1_000

#: Asks for what a call is to be promised.
_Ask: TypeAlias = Callable[[Promise], Awaitable[Verdict]]
#: Has something be done that nobody waits for.
Later: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a tenant may use.

    Attributes:
        counter: Of its model's tokens.
        promised_for_s: How long a call's promise lasts where nobody says what has come of the call.
        fails_open: Where its usage can't be reached for `fail_after_s` everything is allowed, and else nothing.
    """

    budgets: tuple[Budget, ...]
    concurrency: Concurrency
    model: str
    context_tokens: int
    counter: TokenCounter
    promised_for_s: float
    fails_open: bool
    fail_after_s: float

    @property
    def limits_turns(self) -> bool:
        return any(self.concurrency)


class FirstCall(NamedTuple):
    """What is known of a turn's first call when the turn is to begin: of its prompt, and whether that is all of it."""

    messages: Sequence[ChatMessage]
    max_tokens: int
    is_whole: bool
    tools: Sequence[ToolSpec] = ()


class TurnAllowance:
    """In the hands of whoever runs the turn, from `admit`, or from when it is taken over, to `close`.

    Args:
        usages: Where the tenant's `TokenUsage` is.
        holder: A name used for this run of the turn and no other.
        counts: Told of questions that nobody has answered.
    """

    def __init__(
        self,
        usages: Namespace[TokenUsage],
        tenant: str,
        turn_id: str,
        holder: str,
        terms: Terms,
        later: Later,
        counts: LimitCounts,
        *,
        renew_every_s: float = RENEW_EVERY_S,
    ) -> None:
        #: What is told has the time of any call, since nobody waits for it. What is asked, the tenant's.
        self._usage = usages.get(tenant, USAGE_NAME)
        self._asked_usage = usages.get(tenant, USAGE_NAME, timeout_s=terms.fail_after_s)
        self._tenant = tenant
        self._turn_id = turn_id
        self._holder = holder
        self._terms = terms
        self._later = later
        self._counts = counts
        self._renew_every_s = renew_every_s
        #: What the turn was admitted with, until a call uses it; not after that time of the loop.
        self._first: Promise | None = None
        self._first_until_s = 0.0
        self._is_admitted = False
        self._keeping: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    # -- the turn

    async def admit(self, client: str, first: FirstCall) -> None:
        """
        Args:
            client: Who has asked, as the limits know them.

        Raises:
            TooManyTurns, BudgetExceeded, BudgetTooSmall: the turn may not begin.
            DurableError: nobody can say.
        """

        async def ask(promise: Promise) -> Verdict:
            verdict: Verdict = await self._asked_usage.admit(
                self._turn_id, client, self._holder, promise, self._terms.budgets, self._terms.concurrency
            )
            return verdict

        size = self._size(first.messages, first.tools, first.max_tokens, is_whole=first.is_whole)
        self._first = await self._promised(FIRST_CALL, size, first.max_tokens, ask)
        self._first_until_s = asyncio.get_running_loop().time() + PROMISE_MARGIN_S
        self._is_admitted = True

    def hold(self) -> None:
        """The turn is under way here: its lease is renewed until it is closed."""
        if self._terms.limits_turns:
            self._keeping = self._later(self._keep())

    def close(self, *, is_over: bool = True) -> None:
        """Nobody runs the turn here any more. Where it is not over, its lease is left for who goes on with it."""
        self._later(self._give_back(is_over=is_over))

    async def withdraw(self) -> None:
        """The turn was not begun; returns when its lease and its promise are given back, or that takes too long."""
        await asyncio.wait({self._later(self._give_back(is_over=True))}, timeout=self._terms.fail_after_s)

    async def _keep(self) -> None:
        while not self._closed.is_set():
            # Whoever takes a turn over begins with that.
            if self._is_admitted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._renew_every_s):
                        await self._closed.wait()
                        return
            self._is_admitted = True
            await self._tell(self._usage.renew(self._turn_id, self._holder))

    async def _give_back(self, *, is_over: bool) -> None:
        self._closed.set()
        first, self._first = self._first, None
        if first is not None and self._terms.budgets:
            await self._tell(self._usage.settle(self._turn_id, FIRST_CALL, 0, 0))
        if self._keeping is not None:
            await asyncio.wait({self._keeping})
        if is_over and self._terms.limits_turns:
            await self._tell(self._usage.release(self._turn_id, self._holder))

    # -- its calls of the model

    def paid(self, stream: Stream, attempt: int) -> Stream:
        """The same model, asked only where the tokens of the call are promised.

        Raises:
            BudgetExceeded, BudgetTooSmall: they are not; the model was not asked.
            DurableError: nobody can say.
        """
        numbers = itertools.count(attempt * CALLS_PER_ATTEMPT_MAX + 1)

        async def ask_model(request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
            call = await self._reserve(next(numbers), request)
            usage = CallUsage(request)
            try:
                async with aclosing(stream(request)) as events:
                    while True:
                        with usage.watched():
                            event = await anext(events, None)
                        if event is None:
                            break
                        usage.take(event)
                        yield event
            finally:
                used = (0, 0) if usage.tokens is None else usage.tokens[:2]
                self._settling = self._later(self._tell(self._usage.settle(self._turn_id, call, *used)))

        return ask_model if self._terms.budgets else stream

    async def _reserve(self, number: int, request: ChatRequest) -> int:
        """Has a call be promised what it may use. Returns the number that it goes by."""
        if self._settling is not None:
            # What an earlier call has left may be what this one needs.
            await asyncio.wait({self._settling}, timeout=self._terms.fail_after_s)
        first, self._first = self._first, None
        size = self._size(request.messages, request.tools, request.max_tokens)
        is_counted = first is not None and first.is_exact
        if first is not None:
            number = FIRST_CALL
            lasts = asyncio.get_running_loop().time() <= self._first_until_s
            input_tokens = await size.counted() if is_counted else size.at_most()
            if lasts and first.output_tokens >= request.max_tokens and first.input_tokens >= input_tokens:
                return number

        async def ask(promise: Promise) -> Verdict:
            verdict: Verdict = await self._asked_usage.reserve(self._turn_id, promise, self._terms.budgets)
            return verdict

        try:
            await self._promised(number, size, request.max_tokens, ask, is_counted=is_counted)
        except BaseException:
            self._first = first  # not used, and to be given back
            raise
        return number

    async def _promised(
        self, call: int, size: PromptSize, max_tokens: int, ask: _Ask, *, is_counted: bool = False
    ) -> Promise:
        """
        Args:
            is_counted: The prompt is, since little was left when last was asked.
        """
        input_tokens = await size.counted() if is_counted else size.at_most()
        is_exact = is_counted or size.is_exact
        promise = Promise(call, self._terms.model, input_tokens, max_tokens, is_exact, self._terms.promised_for_s)
        verdict = await self._asked(ask, promise)
        if verdict.ruling is Ruling.INEXACT:
            promise = promise._replace(input_tokens=await size.counted(), is_exact=True)
            verdict = await self._asked(ask, promise)
        match verdict.ruling:
            case Ruling.GRANTED:
                return promise
            case Ruling.NEVER:
                raise BudgetTooSmall(verdict.violated, promise.input_tokens, promise.output_tokens)
            case _ if set(verdict.violated) <= {TURNS_PER_CLIENT, TURNS_PER_TENANT}:
                raise TooManyTurns(verdict.violated, verdict.retry_after_s)
            case _:
                raise BudgetExceeded(verdict.violated, verdict.retry_after_s)

    def _size(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec], max_tokens: int, *, is_whole: bool = True
    ) -> PromptSize:
        room = self._terms.context_tokens - max_tokens
        return PromptSize(messages, tools, counter=self._terms.counter, room=room, is_whole=is_whole)

    # -- whom it asks

    async def _asked(self, ask: _Ask, promise: Promise) -> Verdict:
        """The owner's word; where it can't be reached for as long as the tenant says, the tenant's own choice."""
        try:
            return await ask(promise)
        except ObjectOverloaded:
            # Whatever the tenant says: else whoever sends so many at once would be let through unasked.
            self._counts.add("refused", self._tenant, BUDGETS)
            raise
        except DurableError as error:
            if not error.retryable:
                raise
            self._counts.add("let_through" if self._terms.fails_open else "refused", self._tenant, BUDGETS)
            if not self._terms.fails_open:
                raise
            logger.warning("tenant=%s turn=%s is allowed unasked: %s", self._tenant, self._turn_id, error)
            return Verdict(Ruling.GRANTED)

    async def _tell(self, telling: Awaitable[None]) -> None:
        try:
            await telling
        except DurableError as error:  # what is not told lapses
            logger.warning("tenant=%s turn=%s is not told of: %s", self._tenant, self._turn_id, error)
