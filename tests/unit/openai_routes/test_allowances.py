"""Are clients told over HTTP what they may use, and when they may use more; also those that keep no session here?"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from actors import TokenUsage
from actors.token_usage import USAGE_NAME
from actors.turn import TurnError
from deployments.chat_request import ToolCall
from deployments.errors import BudgetExceeded, BudgetTooSmall, ModelRefused, ModelUnavailable, ServiceError
from deployments.ingress.openai.response_events import ResponseEvents
from deployments.turn_runner import as_error, as_raised
from tests.unit.openai_routes.lab import PIECES, Lab
from tests.unit.talk import until

KEY = "sk-thrifty"
ASKED: dict[str, Any] = {"model": "embedded", "messages": [{"role": "user", "content": "Why?"}]}


async def left(lab: Lab) -> dict[str, Any]:
    found = await lab.services.allowances.left("thrifty", "all")
    assert found["turns_in_flight"] is not None
    return {"in_flight": found["turns_in_flight"]["client"], **found["budgets"][0]["output_tokens"]}


async def comes_to(lab: Lab, **expected: int) -> None:
    async def is_so() -> bool:
        await lab.services.usage.told()
        now = await left(lab)
        return all(now[name] == value for name, value in expected.items())

    await until(is_so)


def http(lab: Lab, app: FastAPI, key: str = KEY) -> httpx.AsyncClient:
    app.state.services = lab.services
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://mobula", headers={"Authorization": f"Bearer {key}"})


async def test_answers_without_a_session_are_paid_for_and_counted_once(app: FastAPI, lab: Lab) -> None:
    async with lab.client(app, KEY) as client:
        for number in range(3):
            await client.chat.completions.create(**ASKED)
            await comes_to(lab, used=(2 * number + 1) * len(PIECES), promised=0, in_flight=0)
            await client.responses.create(model="embedded", input="Why?", store=False)
            await comes_to(lab, used=(2 * number + 2) * len(PIECES), promised=0, in_flight=0)
    usage = lab.services.objects.namespace(TokenUsage).get("thrifty", USAGE_NAME)
    assert sum(day["output_tokens"] for day in await usage.days("0000", "9999")) == 6 * len(PIECES)


async def test_many_at_once_get_no_more_than_the_budget_pays_for(app: FastAPI, lab: Lab) -> None:
    lab.model.stalls_at = 0
    async with lab.client(app, KEY) as client:
        asking = [asyncio.create_task(client.chat.completions.create(**ASKED)) for _ in range(50)]

        async def are_decided() -> bool:
            return sum(one.done() for one in asking) == 45

        await until(are_decided)
        assert await left(lab) == {"in_flight": 5, "limit": 500, "used": 0, "promised": 500, "remaining": 0}
        lab.model.may_go_on.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        refused = [one for one in found if isinstance(one, openai.RateLimitError)]
        assert len(refused) == 45
        assert {(one.code, one.response.headers["retry-after"]) for one in refused} == {("insufficient_quota", "5")}
        assert len(lab.model.requests) == 5
        await comes_to(lab, used=5 * len(PIECES), promised=0, in_flight=0)


async def test_too_many_turns_are_told_apart_from_a_budget(app: FastAPI, lab: Lab) -> None:
    lab.model.stalls_at = 0
    async with lab.client(app, KEY) as client:
        asking = [asyncio.create_task(client.chat.completions.create(**ASKED, max_tokens=1)) for _ in range(6)]

        async def are_in_flight() -> bool:
            return len(lab.model.requests) == 6

        await until(are_in_flight)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**ASKED, max_tokens=1)
        assert (refused.value.code, refused.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "1")
        async with http(lab, app) as plain:
            problem = await plain.post("/chat", json={"message": "Why?", "retrieve": False})
            assert (problem.status_code, problem.headers["retry-after"]) == (429, "1")
            assert problem.json()["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
            assert problem.json()["violated-policies"] == ["turns-per-client"]
        lab.model.may_go_on.set()
        await asyncio.gather(*asking)
        await comes_to(lab, in_flight=0)


async def test_a_budget_that_is_used_up_is_a_problem_with_the_budgets_name(app: FastAPI, lab: Lab) -> None:
    usage = lab.services.objects.namespace(TokenUsage).get("thrifty", USAGE_NAME)
    await usage.add(lab.talk.clock.now(), "embedded", 1, 450)
    async with http(lab, app) as client:
        problem = await client.post("/chat", json={"message": "Why?", "retrieve": False})
    assert problem.status_code == 429
    assert problem.json()["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert problem.json()["violated-policies"] == ["daily"]
    # 2001-09-09, a quarter to two in the morning.
    assert problem.headers["retry-after"] == str(86_400 - 1_000_000_000 % 86_400)


async def listed(lab: Lab) -> list[str]:
    """The tenant's sessions."""
    page = await lab.services.sessions.page("thrifty", limit=100, after=None, user_id=None)
    return [session["id"] for session in page["sessions"]]


UI_CHAT: dict[str, Any] = {
    "id": "chat-of-the-client",
    "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Why?"}]}],
    "trigger": "submit-message",
    "retrieve": False,
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"message": "Why?", "retrieve": False}),
        ("/chat", UI_CHAT),
        ("/v1/responses", {"model": "embedded", "input": "Why?"}),
        ("/v1/chat/completions", ASKED),
    ],
    ids=["chat", "useChat", "responses", "completions"],
)
async def test_a_question_that_is_denied_leaves_no_session_behind(
    app: FastAPI, lab: Lab, path: str, body: dict[str, Any]
) -> None:
    usage = lab.services.objects.namespace(TokenUsage).get("thrifty", USAGE_NAME)
    await usage.add(lab.talk.clock.now(), "embedded", 1, 450)
    async with http(lab, app) as client:
        for _ in range(2):
            assert (await client.post(path, json=body)).status_code == 429
    assert await listed(lab) == []
    # At most it was looked whether the same question had been let in before.
    assert {method for name, method in lab.talk.objects.calls if name == "ChatSession"} <= {"has_begun"}


class OnSecondCall(dict[str, Exception]):
    """What a handle raises when a method is called for the second time."""

    def __init__(self, **errors: Exception) -> None:
        super().__init__(errors)
        self._called: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        if name in self._called:
            return super().get(name, default)
        self._called.add(name)
        return default


async def test_a_copy_that_was_made_for_an_answer_goes_where_that_is_denied(app: FastAPI, lab: Lab) -> None:
    async with lab.client(app, KEY) as client:
        first = await client.responses.create(model="embedded", input="Why?")
        await client.responses.create(model="embedded", input="And?", previous_response_id=first.id)
        before = await listed(lab)
        lab.chat.errors = OnSecondCall(begin=BudgetExceeded(("daily",), 5.0))
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model="embedded", input="Or?", previous_response_id=first.id)
        assert await listed(lab) == before
        lab.chat.errors = {}
        await client.responses.create(model="embedded", input="Or?", previous_response_id=first.id)
        assert len(await listed(lab)) == len(before) + 1


async def test_a_chat_of_the_ai_sdk_that_was_denied_goes_on_in_one_session(app: FastAPI, lab: Lab) -> None:
    lab.chat.errors["begin"] = BudgetExceeded(("daily",), 5.0)
    async with http(lab, app) as client:
        assert (await client.post("/chat", json=UI_CHAT)).status_code == 429
        assert (await client.get(f"/chat/{UI_CHAT['id']}/stream")).status_code == 204
        assert (await client.get(f"/chat/{UI_CHAT['id']}/messages")).status_code == 404
        del lab.chat.errors["begin"]
        again = {**UI_CHAT, "trigger": "regenerate-message"}
        for body in (again, UI_CHAT):
            assert (await client.post("/chat", json=body)).status_code == 200
        (session_id,) = await listed(lab)
        shown = (await client.get(f"/chat/{UI_CHAT['id']}/messages")).json()
        assert (shown["session_id"], len(shown["messages"])) == (session_id, 2)


async def test_a_call_that_no_budget_can_pay_for_is_no_matter_of_time(app: FastAPI, lab: Lab) -> None:
    lab.chat.errors["begin"] = BudgetTooSmall(("daily",), 12, 600)
    async with http(lab, app) as client:
        problem = await client.post("/chat", json={"message": "Why?", "retrieve": False})
        assert (problem.status_code, problem.json()["violated-policies"]) == (422, ["daily"])
        assert "retry-after" not in problem.headers
        assert "12 tokens" in problem.json()["detail"]
    async with lab.client(app, KEY) as openai_client:
        with pytest.raises(openai.BadRequestError) as refused:
            await openai_client.responses.create(model="embedded", input="Why?")
        assert refused.value.code == "budget_too_small"


async def test_a_client_that_goes_away_keeps_nothing(app: FastAPI, lab: Lab) -> None:
    lab.model.stalls_at = 1
    async with lab.client(app, KEY) as client:
        asking = asyncio.create_task(client.chat.completions.create(**ASKED))
        await lab.model.stalled.wait()
        await comes_to(lab, promised=100, in_flight=1)
        asking.cancel()
        await comes_to(lab, used=1, promised=0, in_flight=0)


async def test_what_is_left_is_shown_to_who_asks(app: FastAPI, lab: Lab) -> None:
    async with http(lab, app) as client:
        shown = (await client.get("/ratelimit/usage")).json()
        (budget,) = shown["budgets"]
        assert 0 < budget.pop("resets_in_s") <= 86_400
        assert budget == {
            "name": "daily",
            "model": None,
            "per": "day",
            "input_tokens": {"limit": None, "used": 0, "promised": 0, "remaining": None},
            "output_tokens": {"limit": 500, "used": 0, "promised": 0, "remaining": 500},
        }
        assert shown["turns_in_flight"] == {"client": 0, "tenant": 0, "per_client": 6, "per_tenant": 7}
    async with http(lab, app, "sk-acme") as client:
        shown = (await client.get("/ratelimit/usage")).json()
        assert (shown["budgets"], shown["turns_in_flight"]) == ([], None)


@pytest.mark.parametrize(
    "error",
    [
        BudgetExceeded(("daily", "monthly"), 60.0),
        ModelUnavailable("too many requests", 2.0),
        ModelRefused("model refused: no", "ModelRefused"),
    ],
)
def test_an_error_that_ended_a_turn_is_raised_as_it_was(error: ServiceError) -> None:
    raised = as_raised(as_error(error))
    assert (type(raised), raised.retry_after_s) == (type(error), error.retry_after_s)
    if isinstance(error, BudgetExceeded):
        assert raised.args == error.args


def test_a_response_says_that_it_was_a_limit() -> None:
    told = ResponseEvents({"id": "r", "output": []}, queries=None, shows_results=False)
    error: TurnError = as_error(BudgetExceeded(("daily",), 60.0))
    told.take({"number": 1, "type": "error", "data": {**error, "usage": None}})
    assert told.response()["error"]["code"] == "rate_limit_exceeded"


async def test_what_a_model_calls_is_paid_for_as_well(app: FastAPI, lab: Lab) -> None:
    lab.model.calls = [ToolCall(id="c1", name="look_up", arguments="{}")]
    async with lab.client(app, KEY) as client:
        await client.chat.completions.create(**ASKED)
    await comes_to(lab, used=len(PIECES), promised=0, in_flight=0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"message": "Why?", "retrieve": False, "stream": False}),
        (
            "/chat",
            {
                "id": "c1",
                "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Why?"}]}],
                "retrieve": False,
            },
        ),
        ("/v1/responses", {"input": "Why?", "background": True}),
        ("/v1/responses", {"input": "Why?", "store": False}),
        ("/v1/chat/completions", ASKED),
    ],
    ids=["chat", "useChat", "response", "response without a session", "completion"],
)
async def test_each_way_to_ask_says_who_asks(app: FastAPI, lab: Lab, path: str, body: dict[str, Any]) -> None:
    lab.model.stalls_at = 0
    async with http(lab, app) as client:
        asking = asyncio.create_task(client.post(path, json=body))
        await comes_to(lab, in_flight=1)
        lab.model.may_go_on.set()
        assert (await asking).status_code == 200
        await comes_to(lab, in_flight=0, promised=0, used=len(PIECES))
