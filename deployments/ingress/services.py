"""What do the routes work with?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from ray.serve.handle import DeploymentHandle

from actors import Objects, Operator
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments.idempotency import Idempotency
from deployments.keyring import Keyring
from deployments.limiter import Limiter
from deployments.sessions import Sessions
from deployments.turns import Turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """All that an ingress replica holds, made once."""

    config: ServiceConfig
    tenants: Mapping[str, TenantConfig]
    objects: Objects
    operator: Operator
    keyring: Keyring
    limiter: Limiter
    sessions: Sessions
    turns: Turns
    idempotency: Idempotency
    chat: DeploymentHandle
    ingest: DeploymentHandle
    search: DeploymentHandle


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
