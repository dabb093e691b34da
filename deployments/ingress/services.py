"""What do the routes work with?"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from ray.serve.handle import DeploymentHandle

from actors import ManagedObjects, Objects, Operator
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments.activity import ActivityLog
from deployments.allowances import Allowances
from deployments.chat_way import ChatWay
from deployments.denials import Denials
from deployments.idempotency import Idempotency
from deployments.ingress.addresses import ClientAddresses
from deployments.keyring import Keyring
from deployments.leases import Leases
from deployments.limit_changes import LimitChanges
from deployments.limit_counts import TELL_EVERY_S, LimitCounts, Outcome
from deployments.limiter import GIVE_BACK_EVERY_S, Limiter
from deployments.live_limits import LiveLimits
from deployments.model_client import Models
from deployments.sessions import Sessions
from deployments.tenant_files import TenantFiles
from deployments.turns import Turns
from deployments.usage_log import UsageLog

logger = logging.getLogger("mobula.ingress")

AGAIN_AFTER_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """All that an ingress replica holds, made once."""

    config: ServiceConfig
    tenants: Mapping[str, TenantConfig]
    objects: Objects
    operator: Operator
    keyring: Keyring
    limiter: Limiter
    limit_changes: LimitChanges
    limit_counts: LimitCounts
    addresses: ClientAddresses
    sessions: Sessions
    turns: Turns
    idempotency: Idempotency
    usage: UsageLog
    allowances: Allowances
    chat: ChatWay
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
        monotonic: Callable[[], float],
        count: Callable[[Outcome, str, str, int], None],
        peer_header: str | None,
        chat: DeploymentHandle,
        model: Models,
        embedding: DeploymentHandle,
        ingest: DeploymentHandle,
        search: DeploymentHandle,
    ) -> Services:
        """Those that work on `objects`, in front of the other deployments.

        Args:
            objects: where all objects are.
            config: of the service.
            tenants: all of them, as they were when it started.
            now: seconds since 1970.
            monotonic: seconds, of a clock that nobody sets.
            count: adds to the metric of what the limits do.
            peer_header: in which Serve's own proxy says who connected to it, if it does.
            chat, model, embedding, ingest, search: the other deployments.
        """
        limits, counts = LiveLimits(tenants), LimitCounts(count)
        denials, leases = Denials(monotonic), Leases(monotonic, new_id=lambda: secrets.token_hex(8))
        changes = LimitChanges(
            objects,
            TenantFiles(config, tenants),
            limits,
            [denials, leases],
            reader=secrets.token_hex(8),
            monotonic=monotonic,
        )
        sessions = Sessions(objects, tenants, ActivityLog(objects), now)
        return cls(
            config=config,
            tenants=tenants,
            objects=objects,
            operator=Operator(objects),
            keyring=Keyring(tenants.values()),
            limiter=Limiter(objects, limits, denials=denials, leases=leases, counts=counts, monotonic=monotonic),
            limit_changes=changes,
            limit_counts=counts,
            addresses=ClientAddresses(config.http, peer_header),
            sessions=sessions,
            turns=Turns(sessions),
            idempotency=Idempotency(objects, now),
            usage=UsageLog(objects, now),
            allowances=Allowances(objects, tenants, model, limits, counts),
            chat=ChatWay(chat, monotonic),
            model=model,
            embedding=embedding,
            ingest=ingest,
            search=search,
        )

    def beside_requests(self) -> list[Coroutine[Any, Any, None]]:
        """What has to go on for as long as requests are served."""
        work = (self.limit_changes.listen, self.limit_changes.watch, self._give_back, self._tell_counts)
        return [_kept_up(one) for one in work]

    async def _give_back(self) -> None:
        while True:
            await asyncio.sleep(GIVE_BACK_EVERY_S)
            await self.limiter.give_back()

    async def _tell_counts(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            self.limit_counts.flush()


async def _kept_up(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # whatever it is: requests are served without it, and it is wanted again
            logger.exception("what goes on beside requests has failed, and is begun again")
            await asyncio.sleep(AGAIN_AFTER_S)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
