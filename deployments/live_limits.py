"""By which limits are the tenants held now?

What the service was started with, until something newer is put in its place. The routes read it with each request.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs.limits import TenantLimits
from configs.tenant import TenantConfig
from deployments.quotas import TenantQuotas


class LiveLimits:
    """The limits of each tenant, and what they come to."""

    def __init__(self, tenants: Mapping[str, TenantConfig]) -> None:
        self._limits = {name: tenant.limits for name, tenant in tenants.items()}
        #: Policies that could be leased at any time since: some of their tokens may come back when they no longer can.
        self._lent: dict[str, set[str]] = {}
        self._quotas = {name: self._quotas_of(name) for name in self._limits}

    def of(self, tenant: str) -> TenantQuotas:
        return self._quotas[tenant]

    def policies(self) -> dict[str, list[str]]:
        """What the policies of each tenant are called."""
        return {name: [policy.name for policy in limits.all_policies] for name, limits in self._limits.items()}

    def replace(self, limits: Mapping[str, TenantLimits]) -> list[str]:
        """Puts these in place of what there is. Returns the tenants for which that is anything new."""
        changed = [name for name, new in limits.items() if self._limits.get(name, new) != new]
        for name in changed:
            self._limits[name] = limits[name]
            self._quotas[name] = self._quotas_of(name)
        return changed

    def _quotas_of(self, tenant: str) -> TenantQuotas:
        limits, lent = self._limits[tenant], self._lent.setdefault(tenant, set())
        lent.update(policy.name for policy in limits.all_policies if policy.lease is not None)
        return TenantQuotas.of(limits, lent)
