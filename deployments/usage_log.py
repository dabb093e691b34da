"""How does a tenant's usage learn of tokens that no session counts?

What is asked of a model outside of a turn is noted here, and told to the tenant's `TokenUsage` a moment later, each use
once. A crash loses what was not told yet, and nothing that anybody was answered.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from actors import DurableError, Objects, TokenUsage
from actors.token_usage import USAGE_NAME

logger = logging.getLogger("mobula.usage")

#: Uses that may wait to be told; the oldest are lost where the objects don't keep up.
WAITING_MAX = 10_000
LOST_PAUSE_S = 1.0


def new_use_id() -> str:
    return secrets.token_hex(12)


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """One use of a model. `id` keeps it from being counted twice; `at` is in seconds since 1970."""

    id: str
    tenant: str
    at: float
    model: str
    input_tokens: int
    output_tokens: int


class UsageLog:
    """Notes what was used, and tells the tenants' usage."""

    def __init__(self, objects: Objects, now: Callable[[], float]) -> None:
        self._ledgers = objects.namespace(TokenUsage)
        self._now = now
        self._waiting: deque[Use] = deque(maxlen=WAITING_MAX)
        self._telling: asyncio.Task[None] | None = None

    def note(
        self, tenant: str, model: str, *, input_tokens: int, output_tokens: int, use_id: str | None = None
    ) -> None:
        """Takes note of one use; returns at once. `use_id` is what its allowance goes by, where it has one."""
        self._waiting.append(
            Use(
                id=use_id or new_use_id(),
                tenant=tenant,
                at=self._now(),
                model=model,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
            )
        )
        if self._telling is None or self._telling.done():
            # In a context of its own: Serve ends every call made in a request's context when its client goes away.
            telling = asyncio.get_running_loop().create_task(self._tell(), context=contextvars.Context())
            self._telling = telling

    async def told(self) -> None:
        """Returns when nothing waits."""
        while self._telling is not None and not self._telling.done():
            await asyncio.wait({self._telling})

    async def _tell(self) -> None:
        while self._waiting:
            use = self._waiting[0]
            ledger = self._ledgers.get(use.tenant, USAGE_NAME)
            try:
                await ledger.add.once(use.id)(use.at, use.model, use.input_tokens, use.output_tokens, use.id)
            except DurableError as error:
                logger.warning("tenant=%s usage is told later: %s", use.tenant, error)
                if error.retryable:
                    await asyncio.sleep(error.retry_after_s or LOST_PAUSE_S)
                    continue
            # It may have left by itself, to make room for others.
            if self._waiting and self._waiting[0] is use:
                self._waiting.popleft()
