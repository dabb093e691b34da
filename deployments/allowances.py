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
from deployments.model_client import Models
from deployments.turn_allowance import PROMISE_MARGIN_S, RENEW_EVERY_S, FirstCall, Terms, TurnAllowance


class Allowances:
    """Of all tenants.

    Args:
        model: Counts the tokens of the embedded model.
    """

    def __init__(
        self,
        objects: Objects,
        tenants: Mapping[str, TenantConfig],
        model: Models,
        *,
        renew_every_s: float = RENEW_EVERY_S,
    ) -> None:
        self._usages = objects.namespace(TokenUsage)
        limited = {name: tenant for name, tenant in tenants.items() if tenant.budgets or tenant.concurrency.is_limited}
        counters = token_count.counters_of(limited, model)
        self._terms = {
            name: Terms(
                budgets=tuple(Budget(**budget.model_dump()) for budget in tenant.budgets),
                concurrency=Concurrency(tenant.concurrency.per_client, tenant.concurrency.per_tenant),
                model=tenant.model.name,
                context_tokens=tenant.model.context_tokens,
                counter=counters[name],
                promised_for_s=tenant.model.timeout_s + PROMISE_MARGIN_S,
                fails_open=tenant.limits.fail == "open",
            )
            for name, tenant in limited.items()
        }
        self._renew_every_s = renew_every_s
        self._tasks: set[asyncio.Task[None]] = set()

    def is_limited(self, tenant: str) -> bool:
        return tenant in self._terms

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
        if tenant not in self._terms:
            return None
        usage = self._usages.get(tenant, USAGE_NAME)
        return TurnAllowance(
            usage, turn_id, holder, self._terms[tenant], self._later, renew_every_s=self._renew_every_s
        )

    async def left(self, tenant: str, client: str) -> Allowance:
        """What a tenant has left, and how many turns it has in flight."""
        terms = self._terms.get(tenant)
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
