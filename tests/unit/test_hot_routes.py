"""Do the routes that are asked most answer as FastAPI would have them answer?

Each request is sent to an app with them and to one without, each with objects of its own, and the answers are compared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve._private.thirdparty.get_asgi_route_name import get_asgi_route_name

from actors.runtime.clock import ManualClock
from configs.service import RequestLimits, ServiceConfig
from deployments.ingress import app as ingress
from deployments.ingress.hot import HotApp
from deployments.ingress.services import Services
from tests.unit.handles import FailingObjects, services_over, tenant

SESSION = "s" + "0" * 32
MESSAGES = f"/chat/sessions/{SESSION}/messages"
JSON = {"content-type": "application/json"}
KEY = {"authorization": "Bearer sk-acme"}
CONFIG = ServiceConfig(limits=RequestLimits(body_bytes_max=4096, message_chars_max=100))
GOOD = '{"role": "user", "content": "hello"}'
QUESTION = '{"message": "hello", "stream": false}'


class Asked:
    """Answers of one app."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def answer(self, method: str, path: str, content: Any = None, headers: Any = None) -> tuple[int, Any, Any]:
        response = await self._client.request(method, path, content=content, headers={**KEY, **JSON, **(headers or {})})
        told = {name: value for name, value in response.headers.items() if name != "content-length"}
        return response.status_code, response.json() if response.content else None, told


def _services(objects: FailingObjects, clock: ManualClock) -> Services:
    return services_over(objects, clock, {"acme": tenant("acme")}, config=CONFIG)


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> tuple[HotApp, HotApp]:
    """With and without, made once; each test puts its own services behind them."""
    objects = FailingObjects(tmp_path_factory.mktemp("apps"))
    hot, plain = (ingress.build(_services(objects, ManualClock())) for _ in range(2))
    objects.close()
    del plain.router.routes[: len(plain.hot)]
    plain.hot = ()
    return hot, plain


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[list[tuple[FailingObjects, ManualClock]]]:
    worlds = [(FailingObjects(tmp_path / name, clock), clock) for name in "ab" for clock in (ManualClock(),)]
    yield worlds
    for objects, _ in worlds:
        objects.close()


@pytest.fixture
async def pair(
    apps: tuple[HotApp, HotApp], worlds: list[tuple[FailingObjects, ManualClock]]
) -> AsyncIterator[tuple[Asked, Asked]]:
    clients = []
    for app, (objects, clock) in zip(apps, worlds, strict=True):
        app.state.services = services = _services(objects, clock)
        await services.sessions.create("acme", session_id=SESSION)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://mobula"))
    yield Asked(clients[0]), Asked(clients[1])
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize(
    ("method", "path", "content", "headers"),
    [
        ("POST", "/ratelimit/check", None, None),
        ("POST", "/ratelimit/check", "null", None),
        ("POST", "/ratelimit/check", '{"cost": 2.5}', None),
        ("POST", "/ratelimit/check", '{"cost": 1e6}', None),
        ("POST", "/ratelimit/check", '{"cost": "3"}', None),
        ("POST", "/ratelimit/check", '{"cost": -1}', None),
        ("POST", "/ratelimit/check", '{"cost": NaN}', None),
        ("POST", "/ratelimit/check", '{"cots": 1}', None),
        ("POST", "/ratelimit/check", "[1]", None),
        ("POST", "/ratelimit/check", "{", None),
        ("POST", "/ratelimit/check", b"\xff{}", None),
        ("POST", "/ratelimit/check", "[" * 2000, None),
        ("POST", "/ratelimit/check", '{"cost": 1}', {"content-type": "application/json; charset=utf-8"}),
        ("POST", "/ratelimit/check", '{"cost": 1}', {"content-type": "text/plain"}),
        ("POST", "/ratelimit/check", '{"cost": 1}', {"authorization": "Bearer nobody"}),
        ("POST", "/ratelimit/check", '{"cost": 1}', {"authorization": ""}),
        ("POST", "/ratelimit/check", " " * 5000, None),
        ("POST", "/ratelimit/check?x=1", '{"cost": 1}', None),
        ("GET", "/ratelimit/check", None, None),
        ("POST", "/ratelimit/check/", '{"cost": 1}', None),
        ("POST", MESSAGES, GOOD, None),
        ("POST", MESSAGES, GOOD, {"idempotency-key": "k1"}),
        ("POST", MESSAGES, GOOD, {"idempotency-key": '"'}),
        ("POST", MESSAGES, None, None),
        ("POST", MESSAGES, "null", None),
        ("POST", MESSAGES, '{"role": "robot", "content": "hello"}', None),
        ("POST", MESSAGES, '{"role": "user", "content": ""}', None),
        ("POST", MESSAGES, '{"role": "user", "content": "\\ud800"}', None),
        ("POST", MESSAGES, '{"role": "user", "content": "%s"}' % ("x" * 101), None),
        ("POST", MESSAGES, '{"role": "user"}', None),
        ("POST", MESSAGES, "{", None),
        ("POST", f"/chat/sessions/s{'1' * 32}/messages", GOOD, None),
        ("POST", "/chat/sessions/none/messages", GOOD, None),
        ("POST", "/chat/sessions/a%2Fb/messages", GOOD, None),
        ("POST", "/chat", None, None),
        ("POST", "/chat", "null", None),
        ("POST", "/chat", "[]", None),
        ("POST", "/chat", "{", None),
        ("POST", "/chat", "{}", None),
        ("POST", "/chat", QUESTION, {"authorization": "Bearer nobody"}),
        ("POST", "/chat", QUESTION, {"idempotency-key": '"'}),
        ("POST", "/chat", '{"message": 1}', None),
        ("POST", "/chat", '{"message": "hello", "massage": 1}', None),
        ("POST", "/chat", '{"message": "%s"}' % ("x" * 101), None),
        ("POST", "/chat", '{"message": "\\ud800"}', None),
        ("POST", "/chat", '{"message": "hello", "options": {"stop": [1]}}', None),
        ("POST", "/chat", '{"messages": [{"role": "user"}]}', None),
        ("POST", "/chat", QUESTION, {"accept": "application/vnd.ai-sdk.ui-message-stream"}),
        ("POST", "/chat?format=events", '{"message": 1}', None),
        ("PUT", MESSAGES, GOOD, None),
        ("GET", MESSAGES, None, None),
        ("GET", f"{MESSAGES}?limit=1", None, None),
        ("GET", f"{MESSAGES}?limit=1000", None, None),
        ("GET", f"{MESSAGES}?limit=1001", None, None),
        ("GET", f"{MESSAGES}?limit=0", None, None),
        ("GET", f"{MESSAGES}?limit=1&limit=2", None, None),
        ("GET", f"{MESSAGES}?limit=x", None, None),
        ("GET", f"{MESSAGES}?before=2", None, None),
        ("GET", f"/chat/sessions/s{'1' * 32}/messages", None, None),
        ("GET", MESSAGES, None, {"authorization": "Bearer nobody"}),
    ],
)
async def test_a_request_is_answered_alike_either_way(
    pair: tuple[Asked, Asked], method: str, path: str, content: Any, headers: Any
) -> None:
    for one in pair:
        for _ in range(2):
            assert (await one.answer("POST", MESSAGES, GOOD))[0] == 201

    hot, plain = [[await one.answer(method, path, content, headers) for _ in range(2)] for one in pair]

    assert hot == plain


async def test_a_refused_body_is_charged_once(pair: tuple[Asked, Asked]) -> None:
    left = []
    for one in pair:
        await one.answer("POST", MESSAGES, "{")
        left.append((await one.answer("GET", "/ratelimit/usage"))[1]["remaining"])

    assert left[0] == left[1]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/ratelimit/check"), ("POST", "/chat"), ("POST", MESSAGES), ("GET", f"{MESSAGES}?limit=50")],
)
def test_the_usual_request_takes_the_short_way(apps: tuple[HotApp, HotApp], method: str, path: str) -> None:
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"content-type", b"application/json")],
    }

    (found,) = [route for route in apps[0].hot if route.find(scope) is not None]

    # Serve's metrics know the route by this.
    assert get_asgi_route_name(apps[0], scope) == found.path == path.replace(SESSION, "{session_id}")
