"""Over the wire: does a tenant get as much of its model and as many turns at once as it may, and not one more?"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from tests.integration.calls import eventually, ok, problem, unique
from tests.integration.conftest import ANSWER_TOKENS, Service
from tests.integration.scripted_model import ScriptedModel, question

#: An answer takes longer than it takes to decide on all that are asked at once.
PAUSE_S = 0.25


def left(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = ok(client.get("/ratelimit/usage"))
    return found


def of_answers(client: httpx.Client) -> dict[str, int]:
    """Of the tenant's budget."""
    (budget,) = left(client)["budgets"]
    found: dict[str, int] = budget["output_tokens"]
    return found


async def ask(client: httpx.AsyncClient, tag: str, **headers: str) -> httpx.Response:
    message = question(tag, pieces=ANSWER_TOKENS, pause_s=PAUSE_S)
    return await client.post("/chat", json={"message": message, "retrieve": False, "stream": False}, headers=headers)


async def test_a_budget_pays_for_as_many_answers_as_it_can_however_many_are_asked_at_once(
    service: Service, model: ScriptedModel
) -> None:
    tag, calls = unique("budget"), 50
    async with service.async_client("sk-budgeted") as client:
        answers = await asyncio.gather(*(ask(client, tag) for _ in range(calls)))
        answered = [one for one in answers if one.status_code == 200]
        assert len(answered) == model.asked.count(tag) == 5
        for denied in (one for one in answers if one.status_code != 200):
            assert problem(denied, 429)["violated-policies"] == ["monthly"]
        assert {ok(one)["usage"]["output_tokens"] for one in answered} == {ANSWER_TOKENS}
        # Nothing is left, however long one waits.
        denied = await ask(client, tag)
        assert problem(denied, 429)["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
        completion = await client.post(
            "/v1/chat/completions", json={"model": "scripted", "messages": [{"role": "user", "content": "Why?"}]}
        )
        assert completion.status_code == 429
        assert completion.json()["error"]["code"] == "insufficient_quota"
    with service.client("sk-budgeted") as client:
        eventually(lambda: of_answers(client)["promised"] == 0)
        assert of_answers(client) == {"limit": 100, "used": 100, "promised": 0, "remaining": 0}
        # Also when all of them are counted.
        eventually(lambda: ok(client.get("/usage"))["totals"]["turns"] == 5)
        assert of_answers(client)["used"] == 100
        assert left(client)["turns_in_flight"] is None
    assert model.asked.count(tag) == 5


async def test_turns_in_flight_are_as_many_as_may_be_and_not_one_more(service: Service, model: ScriptedModel) -> None:
    tag = unique("crowd")

    async def at_once(client: httpx.AsyncClient, name: str) -> list[asyncio.Task[httpx.Response]]:
        """Those that are let in, when it is decided on all of 20."""
        asking = [asyncio.create_task(ask(client, tag, **{"x-client": name})) for _ in range(20)]
        started_s = time.monotonic()
        expected = {"ann": 17, "bob": 18}[name]
        async with asyncio.timeout(60):
            while sum(one.done() for one in asking) < expected:
                await asyncio.sleep(0.01)
        assert time.monotonic() - started_s < PAUSE_S * ANSWER_TOKENS, "answers have ended meanwhile"
        violated = {name for one in asking if one.done() for name in problem(one.result(), 429)["violated-policies"]}
        assert violated == {"ann": {"turns-per-client"}, "bob": {"turns-per-tenant"}}[name]
        assert {one.result().headers["retry-after"] for one in asking if one.done()} == {"1"}
        return [one for one in asking if not one.done()]

    async with service.async_client("sk-crowded") as client:
        let_in = [*await at_once(client, "ann"), *await at_once(client, "bob")]
        assert len(let_in) == 5
        shown = ok(await client.get("/ratelimit/usage", headers={"x-client": "bob"}))
        assert shown["turns_in_flight"] == {"client": 2, "tenant": 5, "per_client": 3, "per_tenant": 5}
        for one in await asyncio.gather(*let_in):
            ok(one)
        assert model.asked.count(tag) == 5
    with service.client("sk-crowded") as sync_client:
        eventually(lambda: left(sync_client)["turns_in_flight"]["tenant"] == 0)
