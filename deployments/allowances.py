"""Whose turns are limited, and by what?

A tenant with budgets or limits on turns has an allowance for each turn. For all others there is none, and nobody is
asked anything.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Mapping
from typing import Any

from actors import Objects, TokenUsage
from actors.token_budget import Budget
from actors.token_usage import USAGE_NAME, Allowance
from actors.turn_leases import Concurrency
from configs.tenant import TenantConfig
from deployments import token_count
from deployments.limit_counts import LimitCounts
from deployments.live_limits import LiveLimits
from deployments.model_client import Models
from deployments.turn_allowance import PROMISE_MARGIN_S, RENEW_EVERY_S, FirstCall, Terms, TurnAllowance


class Allowances:
    """Of all tenants.

    Args:
        model: Counts the tokens of the embedded model.
        limits: What each tenant may use now, and what becomes of a turn where nobody can be asked about it.
        counts: Told of that.
    """

    def __init__(
        self,
        objects: Objects,
        tenants: Mapping[str, TenantConfig],
        model: Models,
        limits: LiveLimits,
        counts: LimitCounts,
        *,
        renew_every_s: float = RENEW_EVERY_S,
    ) -> None:
        self._usages = objects.namespace(TokenUsage)
        self._limits = limits
        self._counts = counts
        # Of all of them: any may come to be limited.
        self._counters = token_count.counters_of(tenants, model)
        self._renew_every_s = renew_every_s
        self._tasks: set[asyncio.Task[None]] = set()

    def is_limited(self, tenant: str) -> bool:
        config = self._limits.tenant(tenant)
        return bool(config.budgets) or config.concurrency.is_limited

    async def admit(
        self, tenant: str, turn_id: str, holder: str, client: str, first: FirstCall
    ) -> TurnAllowance | None:
        """What a turn may use that is about to begin; None: whatever it likes. See `TurnAllowance`.

        Raises:
            TooManyTurns, BudgetExceeded, BudgetTooSmall: it may not begin.
            DurableError: nobody can say.
        """
        allowance = self.taken_over(tenant, turn_id, holder)
        if allowance is not None:
            await allowance.admit(client, first)
        return allowance

    def taken_over(self, tenant: str, turn_id: str, holder: str) -> TurnAllowance | None:
        """The same of a turn that was begun before."""
        terms = self._terms(tenant)
        if terms is None:
            return None
        return TurnAllowance(
            self._usages, tenant, turn_id, holder, terms, self._later, self._counts, renew_every_s=self._renew_every_s
        )

    def _terms(self, name: str) -> Terms | None:
        """What a turn may use that begins now, or is taken over."""
        if not self.is_limited(name):
            return None
        tenant = self._limits.tenant(name)
        return Terms(
            budgets=tuple(Budget(**budget.model_dump()) for budget in tenant.budgets),
            concurrency=Concurrency(tenant.concurrency.per_client, tenant.concurrency.per_tenant),
            model=tenant.model.name,
            context_tokens=tenant.model.context_tokens,
            counter=self._counters[name],
            promised_for_s=tenant.model.timeout_s + PROMISE_MARGIN_S,
            fails_open=tenant.limits.fail == "open",
            fail_after_s=tenant.limits.fail_after_s,
        )

    async def left(self, tenant: str, client: str) -> Allowance:
        """What a tenant has left, and how many turns it has in flight."""
        terms = self._terms(tenant)
        if terms is None:
            return {"budgets": [], "turns_in_flight": None}
        usage = self._usages.get(tenant, USAGE_NAME)
        left: Allowance = await usage.allowance(terms.budgets, terms.concurrency, client)
        return left

    async def told(self) -> None:
        """Returns when nothing is on its way any more."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In a context of its own: Serve ends every call made in a request's context when its client goes away.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
