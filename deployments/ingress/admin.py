"""/admin/objects: what is there of the durable objects, and how are they looked after?

An object is `/admin/objects/{class_name}?name=...`: its name is a parameter, since it may hold anything, and a path
could hide what is in it. The tenant is the key's own. An operator's key (scope `operator` beside `admin`) may name
another by `tenant=`; to any other key, whatever is another tenant's does not exist. What is asked of an object, but for
looking at what it is, is logged with the key that asked.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, PlainValidator
from starlette.requests import ClientDisconnect

from actors import InvalidArgument, ObjectConflict, ObjectId, ObjectNotFound, TokenBucket
from actors.runtime import SchemaTooNew, StatementRefused
from actors.runtime.query import (
    BINDS_MAX,
    ROWS_DEFAULT,
    ROWS_MAX,
    SQL_CHARS_MAX,
    TIMEOUT_DEFAULT_S,
    TIMEOUT_MAX_S,
)
from actors.runtime.query_child import plain_value
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.fields import Body, Limit, Text, in_utf8
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of
from deployments.keyring import Principal

logger = logging.getLogger("mobula.admin")

PREFIX = "/admin/objects"
router = APIRouter(route_class=guarded_by("admin", "admin"), prefix=PREFIX, tags=["admin"])

#: A database that comes in may be larger than any other body. Larger ones still: `python -m actors import`.
IMPORT_BYTES_MAX = 1024**3
BIND_CHARS_MAX = 10_000
DATABASE_TYPE = "application/vnd.sqlite3"

_CLASS = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
ClassName = Annotated[str, Path(pattern=_CLASS, description="the durable class")]
Name = Annotated[Text, Query(min_length=1, max_length=240, description="the object's name, URL-encoded")]
Tenant = Annotated[
    Text | None, Query(min_length=1, max_length=240, description="another tenant; for keys with the scope `operator`")
]
_DATABASE: dict[str, Any] = {DATABASE_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_CONFLICT: dict[int | str, dict[str, Any]] = {409: {"description": "the object is there already, or has calls to do"}}


def _is_bind(value: Any) -> Any:
    # Not a union of types, which would put its members' names into the name of the field that is at fault.
    if isinstance(value, str) and len(value) <= BIND_CHARS_MAX:
        return in_utf8(value)
    if value is None or isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    raise ValueError(f"must be null, a number, true, false, or a string of at most {BIND_CHARS_MAX} characters")


Bind = Annotated[Any, PlainValidator(_is_bind, json_schema_input_type=str | float | bool | None)]


class NewQuery(Body):
    sql: Annotated[Text, Field(min_length=1, max_length=SQL_CHARS_MAX, description="one statement that reads")]
    binds: Annotated[list[Bind], Field(max_length=BINDS_MAX)] = Field(
        default_factory=list, description="values of its `?`"
    )
    rows_max: Annotated[int, Field(ge=1, le=ROWS_MAX)] = ROWS_DEFAULT
    timeout_s: Annotated[float, Field(gt=0, le=TIMEOUT_MAX_S)] = TIMEOUT_DEFAULT_S


async def _named(caller: Caller, class_name: ClassName, name: Name, tenant: Tenant = None) -> ObjectId:
    if tenant not in (None, caller.tenant) and "operator" not in caller.scopes:
        raise ObjectNotFound("tenant")
    return ObjectId(class_name, tenant or caller.tenant, name)


#: The object that a request names, of those that its caller may look after.
Named = Annotated[ObjectId, Depends(_named)]


def body_bytes_max(path: str) -> int | None:
    """How long a request's body may be, where it is not what it may be elsewhere."""
    return IMPORT_BYTES_MAX if path.startswith(f"{PREFIX}/") and path.endswith("/import") else None


@router.get("", response_model=replies.ManagedObjects)
async def page(
    request: Request,
    caller: Caller,
    class_name: Annotated[str | None, Query(alias="class", pattern=_CLASS)] = None,
    tenant: Tenant = None,
    prefix: Annotated[Text, Query(max_length=240)] = "",
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=512, description="`next` of the page before")] = None,
    quarantined: bool = False,
) -> Response:
    """Objects by class, tenant and name, without waking them. An operator who names no tenant sees those of all."""
    listed = await services_of(request).operator.list(
        class_name,
        tenant=_any_tenant(caller, tenant),
        prefix=prefix,
        limit=limit,
        after=after,
        quarantined=quarantined,
    )
    return reply({"objects": [info.plain() for info in listed.objects], "next": listed.next})


@router.get("/{class_name}", response_model=replies.ManagedObject)
async def describe(request: Request, caller: Caller, object_id: Named) -> Response:
    """One object, without waking it."""
    return reply((await services_of(request).operator.describe(object_id)).plain())


@router.delete("/{class_name}", status_code=204)
async def delete(request: Request, caller: Caller, object_id: Named) -> Response:
    """Removes the object's database, alarm and record of trouble. What others know of it, they still know.

    But for a `TokenBucket`: the answer comes when that holds everywhere, as after `/ratelimit/reset`.
    """
    _note(caller, "delete", object_id)
    try:
        await services_of(request).operator.delete(object_id)
    finally:
        await _announce(request, object_id)
    return Response(status_code=204)


@router.post("/{class_name}/query", response_model=replies.QueryRows)
async def query(request: Request, caller: Caller, object_id: Named, body: NewQuery) -> Response:
    """Runs a statement that reads on the object's database, between two of its calls.

    Values that JSON has no word for are objects: `{"base64": "..."}` for bytes, `{"float": "inf"}`.
    """
    _note(caller, "query", object_id)
    try:
        result = await services_of(request).operator.query(
            object_id, body.sql, *body.binds, rows_max=body.rows_max, timeout_s=body.timeout_s
        )
    except StatementRefused as refused:
        raise InvalidArgument("sql", body.sql, f"may not {refused.action}: {refused.why}") from None
    rows = [[plain_value(value) for value in row] for row in result.rows]
    return reply({"columns": list(result.columns), "rows": rows, "truncated": result.truncated})


@router.post("/{class_name}/evict", status_code=204, responses=_CONFLICT)
async def evict(request: Request, caller: Caller, object_id: Named, force: bool = False) -> Response:
    """Has the object leave memory. Nothing is lost by it. 409 while it has calls running or waiting.

    `force` ends those calls, which are answered as if the object was lost: the way out where one never ends.
    """
    _note(caller, "evict by force" if force else "evict", object_id)
    if not await services_of(request).operator.evict(object_id, force=force):
        raise ObjectConflict(str(object_id), "calls are running or waiting")
    return Response(status_code=204)


@router.post("/{class_name}/alarm", response_model=replies.Fired)
async def fire_alarm(request: Request, caller: Caller, object_id: Named) -> Response:
    """Runs the object's alarm now, if it has one."""
    _note(caller, "alarm", object_id)
    return reply({"fired": await services_of(request).operator.fire_alarm(object_id)})


@router.post("/{class_name}/release", response_model=replies.Released)
async def release(request: Request, caller: Caller, object_id: Named) -> Response:
    """Ends the object's quarantine, if it is in one."""
    _note(caller, "release", object_id)
    return reply({"released": await services_of(request).operator.release(object_id)})


@router.get(
    "/{class_name}/export",
    response_class=StreamingResponse,
    responses={200: {"description": "the database, as one file of SQLite", "content": _DATABASE}},
)
async def export(request: Request, caller: Caller, object_id: Named) -> Response:
    """The object's database as it is between two of its calls."""
    _note(caller, "export", object_id)
    stack = AsyncExitStack()
    size_bytes, pieces = await stack.enter_async_context(services_of(request).operator.export(object_id))

    async def body() -> AsyncIterator[bytes]:
        async with stack:
            async for piece in pieces:
                yield piece

    headers = {
        # Whoever gets less knows that something broke.
        "Content-Length": str(size_bytes),
        "Content-Disposition": f'attachment; filename="{object_id.class_name}.sqlite"',
    }
    return StreamingResponse(body(), media_type=DATABASE_TYPE, headers=headers)


@router.put(
    "/{class_name}/import",
    response_model=replies.ManagedObject,
    responses=_CONFLICT,
    openapi_extra={"requestBody": {"required": True, "content": _DATABASE}},
)
async def import_(
    request: Request,
    caller: Caller,
    object_id: Named,
    replace: Annotated[bool, Query(description="in place of the object that is there")] = False,
) -> Response:
    """Makes an exported database an object. It is looked through first, and counts as a whole or not at all.

    For a `TokenBucket` the answer comes when that holds everywhere, as after `/ratelimit/reset`.
    """
    _note(caller, "import", object_id)
    try:
        info = await services_of(request).operator.import_(object_id, request.stream(), replace=replace)
    except SchemaTooNew as newer:
        raise InvalidArgument("database", newer.found, "was written by newer code") from None
    except ClientDisconnect:
        raise InvalidArgument("database", "", "broke off") from None
    finally:
        await _announce(request, object_id)
    return reply(info.plain())


def _any_tenant(caller: Principal, tenant: str | None) -> str | None:
    """Whose objects the caller may list; None is everybody's."""
    if "operator" in caller.scopes:
        return tenant
    if tenant not in (None, caller.tenant):
        raise ObjectNotFound("tenant")
    return caller.tenant


async def _announce(request: Request, object_id: ObjectId) -> None:
    """Has all processes forget what they knew of a client's buckets, which may be others now.

    Also where it failed: it may have been done all the same, and who asks again is told that there is nothing to do.
    """
    if object_id.class_name == TokenBucket.__name__:
        await services_of(request).limit_changes.announce(object_id.tenant, object_id.name)


def _note(caller: Principal, action: str, object_id: ObjectId) -> None:
    # The object as it is encoded: what somebody named it can't break a line. Lower levels are not kept by default.
    logger.warning("action=%s object=%s by_tenant=%s by_key=%s", action, object_id, caller.tenant, caller.key_id)
