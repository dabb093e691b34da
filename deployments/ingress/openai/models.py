"""/v1/models: which models answer a tenant?

The tenant's own, and the one that makes embeddings. `default` is another name for either, where it is asked for.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from configs.tenant import TenantConfig
from deployments.encoder import MODEL_NAME as EMBEDDING_MODEL
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.openai import shapes
from deployments.ingress.openai.errors import Refused
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

router = APIRouter(route_class=guarded_by("chat", "models"), prefix="/v1/models", tags=["OpenAI: models"])

ALIAS = "default"
OWNER = "mobula"


def required(asked: str, name: str) -> str:
    """The model's name, if that is what was asked for.

    Raises:
        Refused
    """
    if asked not in (name, ALIAS):
        raise Refused(f"The model {asked!r} does not exist: there is {name!r}", "model", "model_not_found", 404)
    return name


def _shown(name: str) -> dict[str, Any]:
    # Nobody knows since when: it is there for as long as the tenant is.
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


def _names(tenant: TenantConfig) -> list[str]:
    return list(dict.fromkeys((tenant.model.name, EMBEDDING_MODEL)))


@router.get("", response_model=shapes.ModelList)
async def page(request: Request, caller: Caller) -> Response:
    names = _names(services_of(request).tenants[caller.tenant])
    return reply({"object": "list", "data": [_shown(name) for name in names]})


@router.get("/{model:path}", response_model=shapes.Model)
async def read(request: Request, caller: Caller, model: str) -> Response:
    tenant = services_of(request).tenants[caller.tenant]
    return reply(_shown(model if model in _names(tenant) else required(model, tenant.model.name)))
