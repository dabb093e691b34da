"""May this request be served at all?

A dependency of every authenticated route: the key is known, it has the route's scope, and the client's bucket pays for
the request. In this order, so that an unknown caller costs no call to any object.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from configs.tenant import Scope
from deployments.ingress.services import services_of
from deployments.keyring import Principal
from deployments.limiter import Requester

REQUEST_COST = 1.0


class Access:
    """Gives the caller of a route.

    Args:
        scope: what the key must be allowed; None for any known key.
        cost: tokens that the request costs.
    """

    def __init__(self, scope: Scope | None, cost: float = REQUEST_COST) -> None:
        self._scope = scope
        self._cost = cost

    async def __call__(self, request: Request) -> Principal:
        services = services_of(request)
        principal = services.keyring.authenticate(request.headers.get("authorization"))
        if self._scope is not None:
            principal.require(self._scope)
        if self._cost:
            await services.limiter.charge(requester_of(request, principal), self._cost)
        return principal


def requester_of(request: Request, principal: Principal) -> Requester:
    """What the limiter may know of a request."""
    header = services_of(request).config.http.client_ip_header
    # The last entry of the last line is the trusted proxy's own: many a proxy adds a line of its own to what the client
    # claims, and others add to the client's line.
    forwarded = (request.headers.getlist(header) or [""])[-1] if header else ""
    address = forwarded.rpartition(",")[2].strip() or (request.client.host if request.client else "")
    return Requester(principal=principal, address=address, headers=request.headers)


ChatCaller = Annotated[Principal, Depends(Access("chat"))]
IngestCaller = Annotated[Principal, Depends(Access("ingest"))]
SearchCaller = Annotated[Principal, Depends(Access("search"))]
KeyValueCaller = Annotated[Principal, Depends(Access("kv"))]
#: Routes of the limiter itself cost nothing: asking what is left must not use it up.
AnyCallerFree = Annotated[Principal, Depends(Access(None, cost=0))]
AdminCallerFree = Annotated[Principal, Depends(Access("admin", cost=0))]
