"""What do the routes work with?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import Request
from ray.serve.handle import DeploymentHandle

from actors import ManagedObjects, Objects, Operator
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments.activity import ActivityLog
from deployments.allowances import Allowances
from deployments.idempotency import Idempotency
from deployments.keyring import Keyring
from deployments.limiter import Limiter
from deployments.model_client import Models
from deployments.sessions import Sessions
from deployments.turns import Turns
from deployments.usage_log import UsageLog


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
    usage: UsageLog
    allowances: Allowances
    chat: DeploymentHandle
    model: Models
    embedding: DeploymentHandle
    ingest: DeploymentHandle
    search: DeploymentHandle

    @classmethod
    def over(
        cls,
        objects: ManagedObjects,
        *,
        config: ServiceConfig,
        tenants: Mapping[str, TenantConfig],
        now: Callable[[], float],
        chat: DeploymentHandle,
        model: Models,
        embedding: DeploymentHandle,
        ingest: DeploymentHandle,
        search: DeploymentHandle,
    ) -> Services:
        """Those that work on `objects`, in front of the other deployments."""
        sessions = Sessions(objects, tenants, ActivityLog(objects), now)
        return cls(
            config=config,
            tenants=tenants,
            objects=objects,
            operator=Operator(objects),
            keyring=Keyring(tenants.values()),
            limiter=Limiter(objects, tenants),
            sessions=sessions,
            turns=Turns(sessions),
            idempotency=Idempotency(objects, now),
            usage=UsageLog(objects, now),
            allowances=Allowances(objects, tenants, model),
            chat=chat,
            model=model,
            embedding=embedding,
            ingest=ingest,
            search=search,
        )


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
