"""Which buckets does a request of a tenant have to pay from, how much, and how is the client told what is left?

`TenantQuotas` is made once from a tenant's limits, `RouteQuota` is what it says of one kind of route. The fields are
those of draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy: "burst";q=100;w=5` and `RateLimit: "burst";r=50;t=3`,
structured fields (RFC 9651). Policies in shadow are not told of: they do not limit anybody yet.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from actors.bucket import Decision, Policy, Row
from configs.limits import ROUTES, LeaseConfig, PolicyConfig, RouteName, TenantLimits

REQUEST_COST = 1.0
#: A structured field's whole numbers have 15 digits. What takes longer is as good as never.
INTEGER_MAX = 999_999_999_999_999


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteQuota:
    """What requests to one kind of route pay from, in the order in which the tenant names the policies.

    Attributes:
        rows: The policies as plain tuples, which is how they travel.
        counting: Which of them deny.
        cost: What a request takes from each.
        policy_field: The value of `RateLimit-Policy`.
        labels: What begins each one's part of `RateLimit`.
        lease: What may be taken from all of them ahead: the least of what each allows. None where one allows nothing.
        is_lent: Some of them may be out on lease, be it for another route.
    """

    policies: tuple[Policy, ...]
    rows: tuple[Row, ...]
    counting: tuple[int, ...]
    cost: float
    policy_field: str
    labels: tuple[str, ...]
    lease: LeaseConfig | None = None
    is_lent: bool = False

    @classmethod
    def of(
        cls, policies: tuple[Policy, ...], cost: float, lease: LeaseConfig | None = None, *, is_lent: bool = False
    ) -> RouteQuota:
        counting = tuple(number for number, policy in enumerate(policies) if not policy.shadow)
        return cls(
            policies=policies,
            rows=tuple((name, rate, capacity, shadow) for name, rate, capacity, shadow in policies),
            counting=counting,
            cost=cost,
            policy_field=", ".join(_policy_item(policies[number]) for number in counting),
            labels=tuple(f'"{policies[number].name}";r=' for number in counting),
            lease=lease,
            is_lent=is_lent or lease is not None,
        )

    def left_field(self, decision: Decision) -> str:
        """The value of `RateLimit`.

        `t` is when the bucket is full. In a denial only those that denied have one, when they can pay: what is later
        than `Retry-After` would tell clients to wait longer than they need to.
        """
        items = []
        for number, label in zip(self.counting, self.labels, strict=True):
            tokens, wait_s = decision.remaining[number], decision.retry_after_s[number]
            if decision.allowed:
                _, rate, capacity, _ = self.rows[number]
                missing = capacity - tokens
                wait_s = missing / rate if rate else (math.inf if missing > 0 else 0.0)
            elif not wait_s:
                wait_s = math.inf
            seconds = f";t={math.ceil(wait_s)}" if wait_s <= INTEGER_MAX else ""
            items.append(f"{label}{int(tokens)}{seconds}")
        return ", ".join(items)

    def violated(self, decision: Decision) -> tuple[str, ...]:
        """The policies that denied the request."""
        return tuple([self.policies[number].name for number in self.counting if decision.retry_after_s[number]])

    def would_violate(self, decision: Decision) -> tuple[str, ...]:
        """The policies in shadow that could not pay for it."""
        return tuple(
            [p.name for p, wait_s in zip(self.policies, decision.retry_after_s, strict=True) if p.shadow and wait_s]
        )

    def retry_after_s(self, decision: Decision) -> float:
        """When all that count can pay; 0 if they have."""
        return max([decision.retry_after_s[number] for number in self.counting], default=0.0)

    def remaining(self, decision: Decision) -> float | None:
        """The most that a request could cost now; None if nothing limits it."""
        return min([decision.remaining[number] for number in self.counting], default=None)


def _policy_item(policy: Policy) -> str:
    window = math.ceil(policy.capacity / policy.refill_per_second) if policy.refill_per_second > 0 else INTEGER_MAX + 1
    return f'"{policy.name}";q={int(policy.capacity)}' + (f";w={max(1, window)}" if window <= INTEGER_MAX else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantQuotas:
    """All that a tenant's limits say, by kind of route. `everything` is of all policies at once, and costs nothing."""

    client_key: tuple[str, ...]
    configs: tuple[PolicyConfig, ...]
    routes: Mapping[RouteName, RouteQuota]
    everything: RouteQuota
    fail: Literal["closed", "open"]
    fail_after_s: float

    @classmethod
    def of(cls, limits: TenantLimits, lent_before: Collection[str] = ()) -> TenantQuotas:
        """`lent_before`: policies of which tokens may still be out, whatever the limits say now."""
        configs = limits.all_policies

        def quota(route: RouteName) -> RouteQuota:
            here = [config for config in configs if config.routes is None or route in config.routes]
            cost = limits.costs.get(route, REQUEST_COST)
            is_lent = any(config.lease is not None or config.name in lent_before for config in here)
            return RouteQuota.of(tuple(map(_policy, here)), cost, _lease(here), is_lent=is_lent)

        return cls(
            client_key=limits.client_key,
            configs=configs,
            routes=MappingProxyType({route: quota(route) for route in ROUTES}),
            everything=RouteQuota.of(tuple(map(_policy, configs)), 0.0),
            fail=limits.fail,
            fail_after_s=limits.fail_after_s,
        )


def _policy(config: PolicyConfig) -> Policy:
    return Policy(config.name, config.refill_per_second, config.capacity, config.shadow)


def _lease(configs: Sequence[PolicyConfig]) -> LeaseConfig | None:
    """A request pays from all of its policies at once, so each token on lease is one from each of them."""
    leases = [config.lease for config in configs if config.lease is not None]
    if not leases or len(leases) < len(configs):
        return None
    return LeaseConfig(tokens=min(lease.tokens for lease in leases), ttl_s=min(lease.ttl_s for lease in leases))
