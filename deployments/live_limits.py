"""By which limits are the tenants held now?

What the service was started with, until something newer is put in its place. The routes read it with each request, and
turns when they begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from configs.tenant import TenantConfig
from deployments.quotas import TenantQuotas

#: What of a tenant may change while the service runs.
LIVE_FIELDS: Final = ("limits", "concurrency", "budgets")


def live_fields(tenant: TenantConfig) -> dict[str, Any]:
    return {name: getattr(tenant, name) for name in LIVE_FIELDS}


class LiveLimits:
    """The limits of each tenant, and what they come to."""

    def __init__(self, tenants: Mapping[str, TenantConfig]) -> None:
        self._tenants = dict(tenants)
        #: Policies that could be leased at any time since: some of their tokens may come back when they no longer can.
        self._lent: dict[str, set[str]] = {}
        self._quotas = {name: self._quotas_of(name) for name in self._tenants}

    def of(self, tenant: str) -> TenantQuotas:
        return self._quotas[tenant]

    def tenant(self, name: str) -> TenantConfig:
        """As the service was started with it, but for what may change since: its `LIVE_FIELDS`."""
        return self._tenants[name]

    def policies(self) -> dict[str, list[str]]:
        """What the policies of each tenant are called."""
        return {name: [policy.name for policy in one.limits.all_policies] for name, one in self._tenants.items()}

    def replace(self, tenants: Mapping[str, TenantConfig]) -> list[str]:
        """Puts what these say of limits in place of what there is. Returns those for which that is anything new."""
        changed = [name for name, new in tenants.items() if live_fields(new) != live_fields(self._tenants[name])]
        for name in changed:
            self._tenants[name] = self._tenants[name].model_copy(update=live_fields(tenants[name]))
            self._quotas[name] = self._quotas_of(name)
        return changed

    def _quotas_of(self, tenant: str) -> TenantQuotas:
        limits, lent = self._tenants[tenant].limits, self._lent.setdefault(tenant, set())
        lent.update(policy.name for policy in limits.all_policies if policy.lease is not None)
        return TenantQuotas.of(limits, lent)
