"""Which process takes requests from clients?

One Serve deployment, in as many replicas as need be; none of them keeps anything that another would have to know.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from actors import ManagedObjects
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments.ingress import app
from deployments.ingress.services import Services
from deployments.limit_metric import counter
from deployments.model_client import ModelClient

#: An open stream holds one for as long as it is open; Serve's own default is 5.
REQUESTS_AT_ONCE_MAX = 500
#: Made and not freed yet, beyond which a garbage collection is run.
YOUNG_OBJECTS_MAX = 10_000


class Ingress:
    """Authenticates, limits and forwards."""

    def __init__(
        self,
        *,
        config: ServiceConfig,
        tenants: Mapping[str, TenantConfig],
        connect: Callable[[], ManagedObjects],
        peer_header: str | None,
        chat: DeploymentHandle,
        model: DeploymentHandle,
        embedding: DeploymentHandle,
        ingest: DeploymentHandle,
        search: DeploymentHandle,
    ) -> None:
        self._services = Services.over(
            connect(),
            config=config,
            tenants=tenants,
            now=time.time,
            monotonic=time.monotonic,
            count=counter(),
            peer_header=peer_header,
            chat=chat,
            model=ModelClient.here(model),
            embedding=embedding,
            ingest=ingest,
            search=search,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        built = app.build(self._services)
        # It stays, and is much: no later collection needs to look through it.
        gc.collect()
        gc.freeze()
        # What a request leaves behind is freed without: with the default of 700 objects each batch of them has one run.
        gc.set_threshold(YOUNG_OBJECTS_MAX)
        return built


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
IngressDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=REQUESTS_AT_ONCE_MAX,
    ray_actor_options={"num_cpus": 0.2},
    graceful_shutdown_timeout_s=10,
)(serve.ingress()(Ingress))
