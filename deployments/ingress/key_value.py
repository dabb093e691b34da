"""/kv: the tenant's own key-value store."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field

from actors import InvalidArgument, KeyValue, ObjectNotFound
from actors.key_value import KEY_CHARS_MAX, STORE_NAME
from actors.runtime.namespace import Stub
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.fields import Body, Json, Limit, TtlSeconds
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

router = APIRouter(route_class=guarded_by("kv", "kv"), prefix="/kv", tags=["key-value"])

Key = Annotated[str, Path(min_length=1, max_length=KEY_CHARS_MAX)]


class NewValue(Body):
    value: Json
    ttl_s: TtlSeconds | None = Field(default=None, description="seconds until it is gone")


def _store(request: Request, tenant: str) -> Stub[KeyValue]:
    return services_of(request).objects.namespace(KeyValue).get(tenant, STORE_NAME)


@router.get("", response_model=replies.ItemList)
async def page(
    request: Request,
    caller: Caller,
    prefix: Annotated[str, Query(max_length=KEY_CHARS_MAX)] = "",
    limit: Limit = 20,
    after: Annotated[str, Query(max_length=KEY_CHARS_MAX)] = "",
) -> Response:
    """Items whose key starts with `prefix`, in the order of the keys."""
    return reply({"items": await _store(request, caller.tenant).list(prefix, limit=limit, after=after)})


@router.get("/{key:path}", response_model=replies.Item)
async def get(request: Request, caller: Caller, key: Key) -> Response:
    item = await _store(request, caller.tenant).get(key)
    if item is None:
        raise ObjectNotFound(f"key {key}")
    return reply(item)


@router.put("/{key:path}", response_model=replies.Item)
async def put(request: Request, caller: Caller, key: Key, body: NewValue) -> Response:
    size_bytes_max = services_of(request).config.limits.kv_value_bytes_max
    size_bytes = len(json.dumps(body.value))
    if size_bytes > size_bytes_max:
        raise InvalidArgument("value", f"{size_bytes} bytes", f"has more than {size_bytes_max} bytes")
    return reply(await _store(request, caller.tenant).put(key, body.value, ttl_s=body.ttl_s))


@router.delete("/{key:path}", status_code=204)
async def delete(request: Request, caller: Caller, key: Key) -> Response:
    if not await _store(request, caller.tenant).delete(key):
        raise ObjectNotFound(f"key {key}")
    return Response(status_code=204)
