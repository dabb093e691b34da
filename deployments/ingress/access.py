"""May this request be served at all?

Asked before anything else of a request is looked at, its body included: the key is known, it has the route's scope, and
the client's buckets pay. In this order, so that an unknown caller costs no call to any object. What came of it is told
in fields of every response (`deployments.ingress.rate_limit_fields`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute

from configs.limits import RouteName
from configs.tenant import Scope
from deployments.client_name import Requester
from deployments.ingress.rate_limit_fields import note_limits
from deployments.ingress.services import services_of
from deployments.keyring import Principal
from deployments.limiter import Verdict, require_allowed

#: Gives the caller of a request, or refuses it.
Guard: TypeAlias = "Callable[[Request], Coroutine[Any, Any, Principal]]"


class Access:
    """Gives the caller of a route.

    Args:
        scope: what the key must be allowed; None for any known key.
        route: by what the tenants' limits know it; None where it costs nothing.
    """

    def __init__(self, scope: Scope | None, route: RouteName | None) -> None:
        self._scope = scope
        self._route = route

    async def __call__(self, request: Request) -> Principal:
        services = services_of(request)
        principal = services.keyring.authenticate(request.headers.get("authorization"))
        quotas = services.limiter.quotas_of(principal.tenant)
        # In case that nothing is asked of the buckets, or nothing answered.
        quota = quotas.everything if self._route is None else quotas.routes[self._route]
        note_limits(request, Verdict(allowed=True, quota=quota, decision=None))
        if self._scope is not None:
            principal.require(self._scope)
        if self._route is not None:
            verdict = await services.limiter.check(requester_of(request, principal), self._route)
            note_limits(request, verdict)
            require_allowed(verdict)
        return principal


def requester_of(request: Request, principal: Principal) -> Requester:
    """What the limiter may know of a request."""
    addresses = services_of(request).addresses
    return Requester(principal=principal, address=lambda: addresses.of(request), headers=request.headers)


def asker_of(request: Request, principal: Principal) -> str:
    """Who asks a model, as the tenant's limits on turns know its clients; the same as for its buckets.

    Also where there are none: whoever runs the turn may have heard of some before this process does.
    """
    return services_of(request).limiter.client_of(requester_of(request, principal))


def guarded_by(scope: Scope | None, route: RouteName | None) -> type[APIRoute]:
    """The class of routes that `Access` stands before. Its handlers take the caller as a `Caller`."""
    access = Access(scope, route)

    class GuardedRoute(APIRoute):
        guard: Guard = access

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            # Not a dependency: FastAPI reads and parses the body before it asks any.
            async def guarded(request: Request) -> Response:
                request.state.caller = await access(request)
                return await handle(request)

            return guarded

    return GuardedRoute


def guard_of(router: APIRouter, endpoint: Callable[..., Any]) -> Guard:
    """What stands before the route of an endpoint."""
    (guard,) = (vars(type(route))["guard"] for route in router.routes if getattr(route, "endpoint", None) is endpoint)
    found: Guard = guard
    return found


async def _caller_of(request: Request) -> Principal:
    caller: Principal = request.state.caller
    return caller


Caller = Annotated[Principal, Depends(_caller_of)]
