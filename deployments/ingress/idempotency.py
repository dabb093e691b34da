"""The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): may this request come a second time?

A route takes the key as an `IdempotencyKey`, which is None where the client sent none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response

from actors.runtime.fingerprint import fingerprint
from deployments.errors import IdempotencyKeyBusy, IdempotencyKeyMalformed
from deployments.idempotency import Answer, KeyedRequest, Outcome
from deployments.ingress.replies import problems, reply
from deployments.ingress.services import services_of
from deployments.keyring import Principal

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
KEY_CHARS_MAX = 255
#: How long a request waits for the one with its key that came a moment earlier.
BUSY_FOR_MAX_S = 5.0
BUSY_PAUSE_S = 0.1
_KEY = re.compile(rf"[!-~]{{1,{KEY_CHARS_MAX}}}")
#: A structured field's string, as the draft has it. Many clients send the key bare.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_SCHEMA = {
    "pattern": rf'^("([!#-\[\]-~]|\\["\\]){{1,{KEY_CHARS_MAX}}}"|[!#-~][!-~]{{0,{KEY_CHARS_MAX - 1}}})$',
}

_DESCRIPTION = (
    "Names this request, so that it can be sent again: whatever is sent with the same key within a day gets the answer"
    f" of the first, and does nothing. 1 to {KEY_CHARS_MAX} visible ASCII characters, in quotes or not; best a random"
    " UUID. A key counts for one tenant and one path."
)

#: What every route that takes a key may answer.
KEYED = problems(
    {
        400: "Idempotency-Key holds no key",
        422: "a field is not as it must be, or the Idempotency-Key came with another request; the body names which",
    }
)


def described(status: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer by `answer_once`, for the documentation."""
    replayed = {"description": "the answer was given before", "schema": {"type": "string", "enum": ["true"]}}
    busy = problems({409: "the first request with the Idempotency-Key is under way; Retry-After says when to ask"})
    return {**KEYED, **busy, status: {"headers": {REPLAYED_HEADER: replayed}}}


def key_of(request: Request) -> str | None:
    """
    Raises:
        IdempotencyKeyMalformed: there is one, and it can't be told which.
    """
    lines = request.headers.getlist(HEADER)
    if not lines:
        return None
    if len(lines) > 1:
        raise IdempotencyKeyMalformed("is there more than once")
    value = lines[0].strip(" \t")
    if value.startswith('"'):
        quoted = _QUOTED.fullmatch(value)
        if quoted is None:
            raise IdempotencyKeyMalformed("is no string in quotes")
        value = re.sub(r"\\(.)", r"\1", quoted.group(1))
    if not _KEY.fullmatch(value):
        raise IdempotencyKeyMalformed(f"must have 1 to {KEY_CHARS_MAX} visible ASCII characters")
    return value


async def _key_of(
    request: Request,
    # For the documentation; FastAPI would take the first of several.
    header: Annotated[str | None, Header(alias=HEADER, description=_DESCRIPTION, json_schema_extra=_SCHEMA)] = None,
) -> str | None:
    return key_of(request)


IdempotencyKey = Annotated[str | None, Depends(_key_of)]


async def answer_once(
    request: Request,
    caller: Principal,
    key: str | None,
    payload: Any,
    *,
    status: int,
    plan: str = "",
    work: Callable[[str], Awaitable[Outcome]],
) -> Response:
    """The answer to `work`, or, where the key came before, the one that it had then.

    Args:
        payload: what makes a request another one, as plain data.
        plan: what must be the same if the work has to be done again.
    """
    if key is None:
        return reply((await work(plan)).content, status)
    answer = await outcome_once(request, caller.tenant, key, payload, plan=plan, work=work)
    response = reply(answer.content, status)
    if answer.replayed:
        response.headers[REPLAYED_HEADER] = "true"
    return response


async def outcome_once(
    request: Request,
    tenant: str,
    key: str,
    payload: Any,
    *,
    plan: str,
    work: Callable[[str], Awaitable[Outcome]],
) -> Answer:
    """What `work` led to, or what it led to when the key came before. Arguments as of `answer_once`."""
    keyed = await _keyed(request, tenant, key, payload)
    return await services_of(request).idempotency.answer(keyed, plan, work)


async def outcome_soon(
    request: Request,
    tenant: str,
    key: str,
    payload: Any,
    *,
    plan: str,
    work: Callable[[str], Awaitable[Outcome]],
) -> Answer:
    """As `outcome_once`, for work that takes a moment: waits for the request with the key that came just before."""
    keyed = await _keyed(request, tenant, key, payload)
    give_up_s = asyncio.get_running_loop().time() + BUSY_FOR_MAX_S
    while True:
        try:
            return await services_of(request).idempotency.answer(keyed, plan, work)
        except IdempotencyKeyBusy:
            if asyncio.get_running_loop().time() >= give_up_s:
                raise
            await asyncio.sleep(BUSY_PAUSE_S)


async def _keyed(request: Request, tenant: str, key: str, payload: Any) -> KeyedRequest:
    route = f"{request.method} {request.url.path}"
    # In a thread: it may be all of a long body.
    requested = await asyncio.to_thread(fingerprint, route, (payload,), {})
    return KeyedRequest(tenant=tenant, route=route, key=key, fingerprint=requested.hex())
