"""Do named policies hold together, is what they admit exact, and do they change while the service runs?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.integration.calls import eventually, ok, problem, unique
from tests.integration.conftest import Service
from tests.paced_load import Load
from tests.rate_limit_fields import fields

#: What the tenant `paced` has.
CAPACITY = 40
REFILL_PER_SECOND = 20
#: Five times what its bucket pays for, from so many connections.
CLIENTS = 50
LOAD_S = float(os.environ.get("PACED_LOAD_S", "20"))
RELOAD = "/admin/reload"
#: For leases to end and be given back.
WITHIN_S = 30.0


@pytest.fixture
def paced(service: Service) -> Iterator[httpx.Client]:
    """A client with full buckets of its own."""
    with service.client("sk-paced") as client:
        client.headers["x-client"] = unique("client")
        yield client


def remaining(client: httpx.Client) -> dict[str, float]:
    return {policy["name"]: policy["remaining"] for policy in ok(client.get("/ratelimit/usage"))["policies"]}


async def test_as_many_are_admitted_as_the_bucket_gives_and_never_more(service: Service) -> None:
    """Two ingress replicas share each bucket, and so do two clients' crowds the machine."""
    assert len(service.processes("ray::ServeReplica:default:Ingress")) == 2
    loads = [Load(capacity=CAPACITY, refill_per_second=REFILL_PER_SECOND) for _ in range(2)]
    rate = 5 * REFILL_PER_SECOND
    await asyncio.gather(
        *[one.run(service, "sk-paced", unique("paced"), rate=rate, clients=CLIENTS, for_s=LOAD_S) for one in loads]
    )
    for one in loads:
        assert one.statuses.keys() == {200, 429}
        assert one.least <= one.admitted <= one.most


def test_a_request_pays_from_all_policies_of_its_route_or_from_none(paced: httpx.Client) -> None:
    found = paced.post("/search", json={"query": "moons"})
    ok(found)
    assert fields(found, "RateLimit-Policy") == {"burst": {"q": 40, "w": 2}, "asking": {"q": 3}}
    assert fields(found, "RateLimit")["asking"] == {"r": 2}
    for _ in range(2):
        ok(paced.post("/search", json={"query": "moons"}))
    eventually(lambda: remaining(paced)["burst"] == CAPACITY)
    denied = paced.post("/search", json={"query": "moons"})
    assert problem(denied, 429)["violated-policies"] == ["asking"]
    assert denied.headers["retry-after"] == "86400"
    assert fields(denied, "RateLimit") == {"burst": {"r": 40}, "asking": {"r": 0, "t": 86_400}}
    # Another route's requests are not denied, cost what the tenant says, and tell their own policies.
    values = paced.get("/kv")
    ok(values)
    assert fields(values, "RateLimit") == {"burst": {"r": 38, "t": 1}}
    assert remaining(paced)["next"] == 0
    assert paced.post("/ratelimit/reset").status_code == 204
    ok(paced.post("/search", json={"query": "moons"}))


def test_a_stream_and_its_openai_twin_tell_the_limits(service: Service) -> None:
    with service.client("sk-paced") as client:
        client.headers["x-client"] = unique("stream")
        with client.stream("POST", "/chat", json={"message": "Say hello.", "max_tokens": 2}) as answer:
            assert answer.status_code == 200
            assert fields(answer, "RateLimit")["asking"] == {"r": 2}
            answer.read()
        body: dict[str, Any] = {
            "model": "default",
            "messages": [{"role": "user", "content": "Hello."}],
            "max_tokens": 2,
        }
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
            assert answer.status_code == 200
            assert fields(answer, "RateLimit")["asking"] == {"r": 1}
            answer.read()


def test_nobody_passes_for_another_address_by_a_header(paced: httpx.Client) -> None:
    claims = {"X-Forwarded-For": "203.0.113.9", "X-Mobula-Peer": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    named = ok(paced.get("/ratelimit/usage", headers=claims))["client"]
    assert named == f"127.0.0.1&{paced.headers['x-client']}"


def test_limits_change_while_the_service_runs_and_mint_nothing(service: Service, paced: httpx.Client) -> None:
    file = service.config.parent / "tenants" / "paced.yaml"
    before = file.read_text()
    tenant = yaml.safe_load(before)
    ok(paced.post("/ratelimit/check", json={"cost": 30}))
    with service.client("sk-operator") as operator:
        try:
            larger = {"name": "burst", "capacity": 100, "refill_per_second": 0}
            file.write_text(yaml.safe_dump({**tenant, "limits": {**tenant["limits"], "policies": [larger]}}))
            assert ok(operator.post(RELOAD))["problems"] == {}
            # At once, in whichever replica. What came before the change is counted by the smaller of the two rates.
            for _ in range(10):
                answer = paced.post("/ratelimit/check", json={"cost": 0})
                assert fields(answer, "RateLimit-Policy") == {"burst": {"q": 100}}
                assert 10 <= ok(answer)["remaining"] <= CAPACITY
            file.write_text("tenant: paced\n")
            assert ok(operator.post(RELOAD))["problems"] == {"paced.yaml": "keys: is required"}
            assert fields(paced.get("/kv"), "RateLimit-Policy") == {"burst": {"q": 100}}
        finally:
            file.write_text(before)
        # By itself.
        eventually(lambda: all(len(remaining(paced)) == 3 for _ in range(4)))
        with service.client("sk-demo") as admin:
            assert problem(admin.post(RELOAD), 403)["scope"] == "operator"


async def test_replicas_that_hold_leases_admit_what_the_bucket_held_and_give_back_the_rest(service: Service) -> None:
    capacity, asked = 100, 12
    headers = {"x-client": unique("leased")}
    async with service.async_client("sk-leased") as client:

        async def left() -> float:
            return float(ok(await client.get("/ratelimit/usage", headers=headers))["remaining"])

        for _ in range(asked):
            assert ok(await client.post("/ratelimit/check", headers=headers))["allowed"]
        # The bucket has paid for requests to come.
        assert await left() < capacity - asked
        assert (await client.post("/ratelimit/reset", headers=headers)).status_code == 204
        # What was on lease before is not spent any more.
        for _ in range(asked):
            assert fields(await client.post("/ratelimit/check", headers=headers), "RateLimit")["quota"]["r"] < capacity
        async with asyncio.timeout(WITHIN_S):
            while await left() != capacity - asked:
                await asyncio.sleep(0.2)
        admitted = asked
        async with asyncio.timeout(WITHIN_S):
            while admitted < capacity:
                answers = await asyncio.gather(*[client.post("/ratelimit/check", headers=headers) for _ in range(40)])
                assert {answer.status_code for answer in answers} <= {200, 429}
                admitted += sum(answer.status_code == 200 for answer in answers)
        assert (admitted, await left()) == (capacity, 0)
        assert (await client.post("/ratelimit/check", headers=headers)).status_code == 429
