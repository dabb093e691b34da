"""Do turns with tools end as they should over HTTP, whatever the model asks for and however its server fails?

A scripted server is the model. Each turn is read as it is made, and again from what was stored.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import httpx
import pytest
from httpx_sse import aconnect_sse, connect_sse

from tests.integration.calls import contents, ingest, ok, unique
from tests.integration.conftest import MODEL_TIMEOUT_S, STEPS_MAX, TOOLED_KEY, Service
from tests.integration.openai_client import openai_client
from tests.integration.scripted_model import ScriptedModel, answer, question

Events = list[tuple[str, dict[str, Any]]]


def asked(client: httpx.Client, message: str, **more: Any) -> Events:
    """A turn's events as they came, which are those that were stored."""
    body = {"message": message, "retrieve": False, **more}
    with connect_sse(client, "POST", "/chat", json=body) as source:
        events = [(one.event, one.json()) for one in source.iter_sse() if one.data]
    path = f"/chat/sessions/{events[0][1]['session_id']}/turns/{events[0][1]['turn_id']}/events"
    with connect_sse(client, "GET", path) as source:
        assert [(one.event, one.json()) for one in source.iter_sse() if one.data] == events
    return events


def kinds(events: Events) -> list[str]:
    """Types of events, text that follows text once."""
    every = [kind for kind, _ in events]
    return [kind for number, kind in enumerate(every) if kind != "text.delta" or every[number - 1] != kind]


def results(events: Events) -> list[dict[str, Any]]:
    return [data for kind, data in events if kind == "tool.result"]


def call(name: str, /, **arguments: Any) -> tuple[str, str]:
    return name, json.dumps(arguments)


def messages_of(client: httpx.Client, events: Events) -> list[dict[str, Any]]:
    path = f"/chat/sessions/{events[0][1]['session_id']}/messages"
    messages: list[dict[str, Any]] = ok(client.get(path))["messages"]
    return messages


def test_tools_are_run_told_and_stored_step_by_step(tooled: httpx.Client, model: ScriptedModel) -> None:
    tag = unique("tools")
    ok(tooled.put(f"/kv/{tag}", json={"value": {"colour": "green"}}))
    ingest(tooled, {"id": tag, "title": "Lighthouses", "text": f"The lighthouse {tag} was rebuilt in 1857."})
    steps = [[call("kv_get", key=tag), call("vector_search", query=f"lighthouse {tag}")], [call("whoami", name="é🐟")]]
    events = asked(tooled, question(tag, pieces=2, steps=steps))
    assert kinds(events) == [
        "turn.created",
        "sources",
        "text.delta",
        *["tool.call"] * 2,
        *["tool.result"] * 2,
        "text.delta",
        "tool.call",
        "tool.result",
        "text.delta",
        "turn.completed",
    ]
    created, completed = events[0][1], events[-1][1]
    names = {"session": created["session_id"], "turn": created["turn_id"], "tenant": "tooled", "name": "é🐟"}
    value, found, me = [result["result"] for result in results(events)]
    assert (value, me) == ({"found": True, "value": {"colour": "green"}}, names)
    assert found["passages"][0]["document_id"] == tag
    assert "1857" in found["passages"][0]["text"]
    # Each step has read and written its own.
    assert completed["usage"] == {"input_tokens": 21, "output_tokens": 6, "total_tokens": 27, "estimated": False}
    assert completed["finish_reason"] == "stop"
    stored = messages_of(tooled, events)
    roles = [message["role"] for message in stored]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert [message["content"] for message in stored if message["role"] == "assistant"] == [answer(tag, 2)] * 3
    assert [json.loads(message["content"]) for message in stored if message["role"] == "tool"] == [value, found, me]
    told = model.told[tag]["messages"]
    assert [json.loads(message["content"]) for message in told if message["role"] == "tool"] == [value, found, me]
    ok(tooled.delete(f"/documents/{tag}"), 204)


def test_what_a_tool_is_called_with_wrongly_and_what_hangs_is_a_result_that_says_so(tooled: httpx.Client) -> None:
    calls = [
        ("kv_get", "no JSON"),
        call("kv_get", key=1),
        call("kv_get", key="x" * 5_000),
        call("kv_get"),
        call("shell", command="ls"),
        call("hangs"),
        call("whoami"),
    ]
    events = asked(tooled, question(unique("bad"), pieces=1, steps=[calls]))
    told = results(events)
    assert ["error" in result for result in told] == [True] * 6 + [False]
    assert "shell" not in told[4].get("result", "")
    assert "3 s" in told[5]["error"]
    assert events[-1][0] == "turn.completed"
    assert not any("/" in result["error"] for result in told[:6])


def test_whatever_a_model_asks_for_it_gets_its_own_tenants_data_alone(
    tooled: httpx.Client, demo: httpx.Client, model: ScriptedModel
) -> None:
    tag, secret = unique("theirs"), unique("secret")
    ok(demo.put(f"/kv/{tag}", json={"value": secret}))
    ingest(demo, {"id": tag, "title": tag, "text": f"The secret of {tag} is {secret}."})
    calls = [
        call("kv_get", key=tag),
        call("kv_get", key=tag, tenant="demo"),
        call("kv_get", key=f"demo:{tag}"),
        call("kv_get", key=f"../demo/{tag}"),
        call("vector_search", query=f"the secret of {tag}"),
        call("vector_search", query=tag, tenant="demo"),
        call("whoami", context={"tenant": "demo"}),
    ]
    events = asked(tooled, question(tag, pieces=1, steps=[calls]))
    assert len(results(events)) == len(calls)
    assert secret not in json.dumps([events, model.told[tag]])
    nothing = {"found": False}
    assert [result.get("result") for result in results(events)][:4] == [nothing, None, nothing, nothing]
    assert all("error" in results(events)[number] for number in (1, 5, 6))
    ok(demo.delete(f"/documents/{tag}"), 204)


def test_a_model_that_wants_tools_for_ever_is_made_to_answer(tooled: httpx.Client, model: ScriptedModel) -> None:
    tag = unique("ever")
    events = asked(tooled, question(tag, pieces=1, steps=[[call("whoami")]], for_ever=True))
    assert kinds(events).count("tool.call") == kinds(events).count("tool.result") == STEPS_MAX - 1
    assert model.asked.count(tag) == STEPS_MAX
    assert "tools" not in model.told[tag]
    assert (events[-1][0], events[-1][1]["finish_reason"]) == ("turn.completed", "length")
    assert messages_of(tooled, events)[-1]["content"] == answer(tag, 1)


class Case(NamedTuple):
    """How a server fails, and what becomes of the turn: its events, its error, and what is kept."""

    script: dict[str, Any]
    events: list[str]
    code: str | None
    roles: list[str]


BEGUN = ["turn.created", "sources"]
RAN = ["tool.call", "tool.result"]
TRIED_IN_VAIN = [*BEGUN, "turn.retrying", "sources", "turn.retrying", "sources", "error"]
STEPS = [[call("whoami")]]
CASES = [
    Case({"pieces": 0, "fails": "stalls"}, [*BEGUN, "error"], "ModelTimeout", ["user"]),
    Case(
        {"pieces": 2, "fails": "stalls"},
        [*BEGUN, "text.delta", "turn.incomplete"],
        "ModelTimeout",
        ["user", "assistant"],
    ),
    Case(
        {"pieces": 1, "steps": STEPS, "fails": "stalls", "in_step": 1},
        [*BEGUN, "text.delta", *RAN, "text.delta", "turn.incomplete"],
        "ModelTimeout",
        ["user", "assistant", "tool", "assistant"],
    ),
    Case({"pieces": 0, "fails": "breaks off"}, TRIED_IN_VAIN, "ModelUnavailable", ["user"]),
    Case(
        {"pieces": 2, "fails": "breaks off"},
        [*BEGUN, "text.delta", "turn.incomplete"],
        "ModelUnavailable",
        ["user", "assistant"],
    ),
    Case({"pieces": 2, "fails": "rubbish"}, TRIED_IN_VAIN, "ModelUnavailable", ["user"]),
    Case(
        {"pieces": 0, "steps": STEPS, "fails": "rubbish", "in_step": 1},
        [*BEGUN, *RAN, "turn.incomplete"],
        "ModelUnavailable",
        ["user", "assistant", "tool"],
    ),
    Case(
        {"pieces": 2, "fails": "busy", "times": 1},
        [*BEGUN, "turn.retrying", "sources", "text.delta", "turn.completed"],
        None,
        ["user", "assistant"],
    ),
    Case({"pieces": 2, "fails": "busy", "again_after_s": 60}, [*BEGUN, "error"], "ModelUnavailable", ["user"]),
]


@pytest.mark.timeout(120)
async def test_a_turn_ends_as_it_should_however_its_models_server_fails(service: Service) -> None:
    async with service.async_client(TOOLED_KEY) as client:

        async def turn(case: Case) -> tuple[Events, list[str], float]:
            started_s = asyncio.get_running_loop().time()
            body = {"message": question(unique("fails"), **case.script), "retrieve": False}
            async with aconnect_sse(client, "POST", "/chat", json=body) as source:
                events = [(one.event, one.json()) async for one in source.aiter_sse() if one.data]
            took_s = asyncio.get_running_loop().time() - started_s
            history = await client.get(f"/chat/sessions/{events[0][1]['session_id']}/messages")
            return events, [message["role"] for message in ok(history)["messages"]], took_s

        # Side by side: a server that stalls is waited for.
        turns = await asyncio.gather(*[turn(case) for case in CASES])
    for case, (events, roles, took_s) in zip(CASES, turns, strict=True):
        last = events[-1][1]
        error = last if case.events[-1] == "error" else last.get("error") or {}
        assert Case(case.script, kinds(events), error.get("code"), roles) == case
        assert took_s < 2 * MODEL_TIMEOUT_S


def test_a_turn_with_tools_is_a_response_with_calls_that_no_client_runs(service: Service) -> None:
    steps = [[call("whoami", name="Otto"), ("kv_get", "no JSON")]]
    with openai_client(service, TOOLED_KEY) as client:
        for streamed in (False, True):
            tag = unique("response")
            given: Any = {"input": question(tag, pieces=1, steps=steps), "model": "default"}
            if streamed:
                events: Any = list(client.responses.create(**given, stream=True))
                types = [event.type for event in events]
                response: Any = events[-1].response
                assert types.count("response.mcp_call.completed") == types.count("response.mcp_call.failed") == 1
            else:
                response = client.responses.create(**given)
            said, ran, failed, after = response.output
            assert (said.type, ran.type, failed.type, after.type) == ("message", "mcp_call", "mcp_call", "message")
            assert json.loads(ran.output)["name"] == "Otto"
            assert (ran.status, failed.status) == ("completed", "failed")
            assert response.output_text == answer(tag, 1) * 2
            kept: Any = client.responses.retrieve(response.id)
            assert [item.to_dict() for item in kept.output] == [item.to_dict() for item in response.output]


def test_a_turn_with_tools_is_what_use_chat_reads(tooled: httpx.Client) -> None:
    tag = unique("ui")
    steps = [[call("whoami", name="Otto"), ("kv_get", "no JSON")]]
    body = {"message": question(tag, pieces=1, steps=steps), "retrieve": False}
    with connect_sse(tooled, "POST", "/chat", params={"format": "ui-message"}, json=body) as source:
        parts = [one.json() for one in source.iter_sse() if one.data not in ("", "[DONE]")]
    told = [part["type"] for part in parts if "tool" in part["type"] or "step" in part["type"]]
    assert told == [
        "start-step",
        *["tool-input-available"] * 2,
        "tool-output-available",
        "tool-output-error",
        "finish-step",
        "start-step",
        "finish-step",
    ]
    output = next(part for part in parts if part["type"] == "tool-output-available")["output"]
    assert (output["tenant"], output["name"]) == ("tooled", "Otto")
    assert "".join(part["delta"] for part in parts if part["type"] == "text-delta") == answer(tag, 1) * 2
    session = f"/chat/sessions/{output['session']}"
    assert contents(tooled, session)[0] == body["message"]
    shown = ok(tooled.get(f"/chat/{output['session']}/messages"))["messages"][-1]["parts"]
    assert [part["state"] for part in shown if part["type"] == "dynamic-tool"] == ["output-available", "output-error"]
