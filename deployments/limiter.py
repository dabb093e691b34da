"""May this client make this request now?

Each client has a `TokenBucket` keyed `tenant:client`, which keeps a bucket for each of the tenant's policies; all that
count pay, or none does. A client that can't pay yet is denied here as long as that is certain (`deployments.denials`).
Where its policies say so, one that asks often is let through by tokens that were debited before (`deployments.leases`).
Where the owner of the buckets can't be asked for `fail_after_s`, the tenant's limits say whether the request is let
through, or refused.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actors import DurableError, InvalidArgument, ObjectOverloaded, ObjectReset, Objects, TokenBucket
from actors.bucket import Decision, State
from actors.runtime.namespace import Stub
from actors.token_bucket import REQUEST_ID_BYTES
from configs.limits import PolicyConfig, RouteName
from deployments.client_name import Requester, client_name
from deployments.denials import Denials
from deployments.errors import QuotaExceeded, TooManyNewClients
from deployments.leases import Leases
from deployments.limit_counts import LimitCounts
from deployments.live_limits import LiveLimits
from deployments.quotas import RouteQuota, TenantQuotas
from deployments.strangers import Strangers

#: A bucket whose host is restarting is asked again after this long, doubled with each try.
CHECK_PAUSE_S = 0.05
CHECK_PAUSE_MAX_S = 1.0
#: Leases that are over are given back together, so many calls at once.
GIVE_BACK_EVERY_S = 0.5
GIVE_BACK_AT_ONCE_MAX = 100
GIVE_BACK_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of a check. `decision` is None where there was nothing to ask, or nobody."""

    allowed: bool
    quota: RouteQuota
    decision: Decision | None

    @property
    def retry_after_s(self) -> float:
        return self.quota.retry_after_s(self.decision) if self.decision else 0.0

    @property
    def remaining(self) -> float | None:
        """The most that a request could cost now; None if nothing limits it, or nobody knows."""
        return self.quota.remaining(self.decision) if self.decision else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a client has left: each of the tenant's policies, with the state of its bucket."""

    client: str
    quotas: TenantQuotas
    states: tuple[State, ...]

    @property
    def policies(self) -> list[tuple[PolicyConfig, State]]:
        return list(zip(self.quotas.configs, self.states, strict=True))

    @property
    def verdict(self) -> Verdict:
        """As if a request of no cost had been made."""
        tokens = tuple([state.tokens for state in self.states])
        decision = Decision(True, tokens, (0.0,) * len(tokens))
        return Verdict(allowed=True, quota=self.quotas.everything, decision=decision)


class Limiter:
    """Checks clients against their buckets.

    Args:
        objects: where the buckets are.
        limits: what each tenant allows.
        denials: who can't pay now.
        leases: who has paid ahead.
        counts: told of what went wrong, and of who was denied.
        monotonic: seconds, of a clock that nobody sets.
        sleep: waits between two tries.
        strangers: has clients that are new wait for each other.
        chance: so many random bits, for the ids of requests.
    """

    def __init__(
        self,
        objects: Objects,
        limits: LiveLimits,
        *,
        denials: Denials,
        leases: Leases,
        counts: LimitCounts,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        strangers: Strangers | None = None,
        chance: Callable[[int], int] = random.getrandbits,
    ) -> None:
        self._buckets = objects.namespace(TokenBucket)
        self._limits = limits
        self._denials = denials
        self._leases = leases
        self._counts = counts
        self._monotonic = monotonic
        self._sleep = sleep
        self._strangers = strangers or Strangers()
        self._chance = chance

    def quotas_of(self, tenant: str) -> TenantQuotas:
        return self._limits.of(tenant)

    def client_of(self, requester: Requester) -> str:
        """The client's name among those of its tenant."""
        return client_name(self._limits.of(requester.principal.tenant).client_key, requester)

    async def check(self, requester: Requester, route: RouteName, cost: float | None = None) -> Verdict:
        """Takes `cost` tokens from the client's buckets for the route, if all that count hold as much.

        Args:
            requester: the client.
            route: what it asks for.
            cost: what that costs; None for what the tenant says.

        Raises:
            DurableError: they could not be asked, and the tenant's limits fail closed.
            ObjectOverloaded: so many requests of the client wait for an answer.
            TooManyNewClients: they were not asked, since so many others wait whose first request it is.
        """
        tenant = requester.principal.tenant
        quotas = self._limits.of(tenant)
        quota = quotas.routes[route]
        if cost is None:
            cost = quota.cost
        if not quota.rows:
            return Verdict(allowed=True, quota=quota, decision=None)
        client = client_name(quotas.client_key, requester)
        decision = None
        if quota.lease is not None:
            decision = self._leases.spend(tenant, client, quota, cost)
        if decision is None:
            decision = self._denials.answer(tenant, client, quota, cost)
        if decision is None:
            try:
                decision = await self._ask(tenant, client, quota, cost, quotas.fail_after_s)
            except InvalidArgument:
                raise
            except (TooManyNewClients, ObjectOverloaded):
                # Whatever the tenant says: else whoever sends so many at once would be let through unchecked.
                self._counts.add("refused", tenant)
                raise
            except DurableError:
                self._counts.add("let_through" if quotas.fail == "open" else "refused", tenant)
                if quotas.fail == "closed":
                    raise
                return Verdict(allowed=True, quota=quota, decision=None)
        if any(decision.retry_after_s):
            for name in quota.would_violate(decision) if decision.allowed else ():
                self._counts.add("shadow", tenant, name)
            for name in quota.violated(decision):
                self._counts.add("denied", tenant, name)
        return Verdict(allowed=decision.allowed, quota=quota, decision=decision)

    async def _ask(self, tenant: str, client: str, quota: RouteQuota, cost: float, timeout_s: float) -> Decision:
        give_up_s = self._monotonic() + timeout_s
        pause_s = CHECK_PAUSE_S
        request_id, again = self._chance(8 * REQUEST_ID_BYTES).to_bytes(REQUEST_ID_BYTES), False
        while True:
            try:
                if self._strangers.is_known(tenant, client):
                    return await self._try(tenant, client, quota, cost, give_up_s, request_id, again=again)
                # Not while it waits for another try: others may have buckets in a host that is there.
                async with self._strangers.turn(tenant, client, within_s=give_up_s - self._monotonic()):
                    return await self._try(tenant, client, quota, cost, give_up_s, request_id, again=again)
            except ObjectReset:
                again = True
                if self._monotonic() + pause_s >= give_up_s:
                    raise
                await self._sleep(pause_s)
                pause_s = min(2 * pause_s, CHECK_PAUSE_MAX_S)

    async def _try(
        self,
        tenant: str,
        client: str,
        quota: RouteQuota,
        cost: float,
        give_up_s: float,
        request_id: bytes,
        *,
        again: bool,
    ) -> Decision:
        asked = self._denials.before_asking()
        bucket = self._buckets.get(tenant, client, timeout_s=max(CHECK_PAUSE_S, give_up_s - asked[0]))
        decision, out = await self._charge(bucket, quota, cost, request_id, again=again)
        if not decision.allowed:
            self._denials.remember(tenant, client, quota, decision, asked, out)
        return decision

    async def _charge(
        self, bucket: Stub[TokenBucket], quota: RouteQuota, cost: float, request_id: bytes, *, again: bool
    ) -> tuple[Decision, tuple[float, ...] | None]:
        """One call of the owner. Returns what it decided, and what may be given back to it, if anything."""
        if not quota.is_lent:
            if again:
                return Decision(*await bucket.check(cost, quota.rows, request_id, again=True)), None
            return Decision(*await bucket.check(cost, quota.rows, request_id)), None
        if quota.lease is None:
            # Nothing is wanted but to hear what other routes may give back.
            answer, _, out = await bucket.lease(cost, quota.rows, None, None, request_id, again=again)
            return Decision(*answer), out
        asking = self._leases.ask(bucket.id.tenant, bucket.id.name, quota)
        decision, leased = None, 0.0
        try:
            wanted = None if asking.wanted is None else tuple(asking.wanted)
            ended = None if asking.ended is None else tuple(asking.ended)
            answer, leased, out = await bucket.lease(cost, quota.rows, wanted, ended, request_id, again=again)
            decision = Decision(*answer)
        finally:
            self._leases.asked(asking, decision, leased)
        # What is on lease here is the client's to spend.
        return decision._replace(remaining=tuple([tokens + leased for tokens in decision.remaining])), out

    async def give_back(self) -> None:
        """Has buckets get back what is left of leases that have ended. What can't be told is lost."""
        due = self._leases.due()
        for first in range(0, len(due), GIVE_BACK_AT_ONCE_MAX):
            told = [
                self._buckets.get(tenant, client, timeout_s=GIVE_BACK_TIMEOUT_S).give_back(tuple(ended))
                for tenant, client, ended in due[first : first + GIVE_BACK_AT_ONCE_MAX]
            ]
            for problem in await asyncio.gather(*told, return_exceptions=True):
                if problem is not None and not isinstance(problem, DurableError):
                    raise problem

    async def usage(self, requester: Requester) -> Usage:
        tenant = requester.principal.tenant
        quotas = self._limits.of(tenant)
        client = client_name(quotas.client_key, requester)
        states = await self._buckets.get(tenant, client).usage(quotas.everything.rows)
        return Usage(client=client, quotas=quotas, states=states)

    async def reset(self, tenant: str, client: str) -> None:
        """Fills one client's buckets. Who remembers that it could not pay has yet to be told."""
        await self._buckets.get(tenant, client).reset()


def require_allowed(verdict: Verdict) -> None:
    """
    Raises:
        QuotaExceeded: the client's buckets can't pay; says which, and when they can.
    """
    if not verdict.allowed:
        assert verdict.decision is not None
        raise QuotaExceeded(verdict.retry_after_s, verdict.quota.violated(verdict.decision))
