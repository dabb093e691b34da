"""May this client make this request now?

Each client has a `TokenBucket` keyed `tenant:client`. What makes a client is the tenant's choice: API key, address,
user, a header, or several of them together.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from actors import ObjectReset, Objects, TokenBucket
from actors.runtime.object_id import encode_part
from actors.token_bucket import Decision, Limit
from configs.tenant import TenantConfig
from deployments.errors import QuotaExceeded
from deployments.keyring import Principal

USER_HEADER = "x-user-id"
#: A longer name is replaced by its hash: file names are bounded, and one character may take three there.
CLIENT_CHARS_MAX = 56
#: A bucket whose host is restarting is asked again this often. A lost try may have taken tokens; none gives any.
CHECK_TRIES_MAX = 8
#: Before the second try; doubled with each. Together they outlast a restart, which takes one to two seconds.
CHECK_PAUSE_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Requester:
    """What a request shows of the client behind it. Header names are in lower case."""

    principal: Principal
    address: str
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a client has left."""

    client: str
    capacity: float
    refill_per_second: float
    remaining: float


class Limiter:
    """Checks clients against their buckets."""

    def __init__(
        self,
        objects: Objects,
        tenants: Mapping[str, TenantConfig],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._buckets = objects.namespace(TokenBucket)
        self._parts = {name: tenant.limits.client_key for name, tenant in tenants.items()}
        self._limits = {
            name: Limit(tenant.limits.refill_per_second, tenant.limits.capacity) for name, tenant in tenants.items()
        }
        self._sleep = sleep

    def client_of(self, requester: Requester) -> str:
        """The client's name: the parts that the tenant chose, each encoded so that none can pose as two.

        Encoded parts hold neither "&" nor "/", so that no value is taken for no value, or for another's hash.
        """
        values = []
        for part in self._parts[requester.principal.tenant]:
            if part == "api_key":
                value = requester.principal.key_id
            elif part == "ip":
                value = requester.address
            elif part == "user":
                value = requester.headers.get(USER_HEADER, "")
            else:
                value = requester.headers.get(part.removeprefix("header:"), "")
            values.append(encode_part(value))
        client = "&".join(values) or "&"
        return client if len(client) <= CLIENT_CHARS_MAX else f"sha256/{hashlib.sha256(client.encode()).hexdigest()}"

    async def charge(self, requester: Requester, cost: float) -> None:
        """
        Raises:
            QuotaExceeded: the client's bucket can't pay; says when it can.
        """
        decision = await self.check(requester, cost)
        if not decision.allowed:
            raise QuotaExceeded(decision.retry_after_s)

    async def check(self, requester: Requester, cost: float) -> Decision:
        """Takes `cost` tokens from the client's bucket if they are there."""
        tenant = requester.principal.tenant
        bucket = self._buckets.get(tenant, self.client_of(requester))
        for tried in range(CHECK_TRIES_MAX):
            if tried:
                await self._sleep(CHECK_PAUSE_S * 2 ** (tried - 1))
            try:
                decision: Decision = await bucket.check(cost, self._limits[tenant])
                return decision
            except ObjectReset:
                if tried + 1 == CHECK_TRIES_MAX:
                    raise
        raise AssertionError("the last try returns or raises")

    async def usage(self, requester: Requester) -> Usage:
        tenant = requester.principal.tenant
        client = self.client_of(requester)
        limit = self._limits[tenant]
        state = await self._buckets.get(tenant, client).usage(limit)
        return Usage(
            client=client,
            capacity=limit.capacity,
            refill_per_second=limit.refill_per_second,
            remaining=state.tokens,
        )

    async def reset(self, tenant: str, client: str) -> None:
        """Fills one client's bucket."""
        await self._buckets.get(tenant, client).reset()
