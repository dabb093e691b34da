"""/admin/reload: the tenants' files are read again."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter, Request, Response

from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

router = APIRouter(route_class=guarded_by("admin", "admin"), prefix="/admin", tags=["admin"])


@router.post("/reload", response_model=replies.Reloaded)
async def reload(request: Request, caller: Caller) -> Response:
    """Has limits and budgets that were changed in the tenants' files hold everywhere. They do by themselves in seconds.

    For keys with the scope `operator` beside `admin`.
    """
    caller.require("operator")
    changes = services_of(request).limit_changes
    standing = await changes.look()
    await changes.announce()
    return reply(dataclasses.asdict(standing))
