"""Does nobody go by what was known of a client once an administrator has removed or replaced its buckets?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from actors import ObjectId, Operator
from actors.runtime.clock import ManualClock
from configs.limits import TenantLimits
from configs.tenant import KeyConfig
from deployments.ingress import app as ingress
from deployments.ingress.services import Services
from tests.unit.handles import SCOPES, FailingObjects, services_over, tenant

KEYS = [
    KeyConfig.model_validate({"id": name, "plain": f"sk-{name}", "scopes": list(SCOPES)}) for name in ("boss", "worker")
]
#: What is used up of it never comes back.
LIMITS = {
    "policies": [{"name": "once", "capacity": 40, "refill_per_second": 0, "lease": {"tokens": 10, "ttl_s": 30}}],
    "costs": {"admin": 0},
}
TENANTS = {"acme": tenant(keys=KEYS, limits=TenantLimits.model_validate(LIMITS))}
BUCKET = "/admin/objects/TokenBucket"
WORKER = {"name": "worker"}
LEASE = ("TokenBucket", "lease")


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock)
    yield objects
    objects.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """Made once, since describing the API takes a while; each test puts its own services behind it."""
    objects = FailingObjects(tmp_path_factory.mktemp("built"))
    app = ingress.build(services_over(objects, ManualClock(), TENANTS))
    objects.close()
    return app


class Replica:
    """One ingress, called by the client whose buckets they are, and by the one who looks after them."""

    def __init__(self, built: FastAPI, services: Services, objects: FailingObjects) -> None:
        self._built, self._services, self._objects = built, services, objects
        transport = httpx.ASGITransport(app=built, client=("10.0.0.1", 1234))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://mobula")

    async def call(self, key: str, method: str, path: str, **request: Any) -> httpx.Response:
        self._built.state.services = self._services
        return await self._http.request(method, path, headers={"authorization": f"Bearer {key}"}, **request)

    async def check(self, cost: float = 1) -> tuple[int, bool]:
        """The status, and whether the bucket was asked."""
        before = self._objects.calls.count(LEASE)
        response = await self.call("sk-worker", "POST", "/ratelimit/check", json={"cost": cost})
        return response.status_code, self._objects.calls.count(LEASE) > before


@pytest.fixture
async def replicas(built: FastAPI, objects: FailingObjects, clock: ManualClock) -> AsyncIterator[list[Replica]]:
    """Two, which listen to the news."""
    services = [services_over(objects, clock, TENANTS) for _ in range(2)]
    numbers = [await one.limit_changes.hear(None) for one in services]

    async def listen(one: Services, after: int) -> None:
        while True:
            after = await one.limit_changes.hear(after)

    tasks = [asyncio.create_task(listen(one, number)) for one, number in zip(services, numbers, strict=True)]
    yield [Replica(built, one, objects) for one in services]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_whose_bucket_was_removed_is_denied_by_no_replica_any_more(replicas: list[Replica]) -> None:
    one, two = replicas
    assert await one.check(40) == (200, True)
    for replica in replicas:
        assert [await replica.check(), await replica.check()] == [(429, True), (429, False)]
    assert (await two.call("sk-boss", "DELETE", BUCKET, params=WORKER)).status_code == 204
    assert [await replica.check() for replica in replicas] == [(200, True)] * 2


async def test_a_removal_that_was_done_before_is_heard_of_when_it_is_asked_for_again(
    replicas: list[Replica], objects: FailingObjects
) -> None:
    one, two = replicas
    await one.check(40)
    assert [await two.check(), await two.check()] == [(429, True), (429, False)]
    await Operator(objects).delete(ObjectId("TokenBucket", "acme", "worker"))
    assert (await one.call("sk-boss", "DELETE", BUCKET, params=WORKER)).status_code == 404
    assert await two.check() == (200, True)


async def test_nobody_spends_what_it_had_on_lease_of_a_bucket_that_was_replaced(replicas: list[Replica]) -> None:
    one, two = replicas
    assert await one.check(30) == (200, True)
    exported = await one.call("sk-boss", "GET", f"{BUCKET}/export", params=WORKER)
    assert [(await two.check()), await two.check(), await two.check()] == [(200, True), (200, True), (200, False)]
    imported = await one.call(
        "sk-boss", "PUT", f"{BUCKET}/import", params={**WORKER, "replace": True}, content=exported.content
    )
    assert imported.status_code == 200, imported.text
    assert await two.check() == (200, True)


async def test_a_bucket_that_comes_in_is_asked_what_it_holds(replicas: list[Replica]) -> None:
    one, two = replicas
    assert await one.check(30) == (200, True)
    exported = await one.call("sk-boss", "GET", f"{BUCKET}/export", params=WORKER)
    assert await one.check(10) == (200, True)
    assert [await two.check(), await two.check()] == [(429, True), (429, False)]
    imported = await one.call(
        "sk-boss", "PUT", f"{BUCKET}/import", params={**WORKER, "replace": True}, content=exported.content
    )
    assert imported.status_code == 200, imported.text
    assert await two.check() == (200, True)
