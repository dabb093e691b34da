"""Does a model with tools come to an answer, or to the right error, whatever it or its server does?"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import KeyValue
from actors.key_value import STORE_NAME
from deployments.chat_client import ChatClient
from deployments.chat_request import ChatMessage, ChatRequest, Finished, ModelEvent, TextDelta, ToolCall, ToolSpec
from deployments.errors import ModelError, ModelRefused, ModelTimeout, ModelUnavailable
from deployments.generation import Generation, GenerationEvent, GenerationLimits, Usage
from deployments.tool import ToolContext, tool_from
from deployments.toolbox import ToolBox, ToolResult
from deployments.tools import kv_get
from tests.unit import own_tools
from tests.unit.handles import FailingObjects
from tests.unit.scripted_server import Reply, Script, ScriptedServer, serving, talking

CONTEXT = ToolContext(tenant="acme", session_id="s1", turn_id="t1")
LIMITS = GenerationLimits(steps_max=4, calls_per_step_max=3, tool_tokens_max=2_000)
QUESTION = ChatRequest(messages=(ChatMessage(role="user", content="Seats?"),), max_tokens=16, timeout_s=10)
BOOK = ToolSpec(name="book", description="Books a seat, at the client's.", parameters={"type": "object"})


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, classes=[KeyValue])
    yield objects
    objects.close()


@pytest.fixture
def box(objects: FailingObjects) -> ToolBox:
    own = [tool_from(getattr(own_tools, name), name=name) for name in ("weather", "much", "sleeps", "raises")]
    return ToolBox([kv_get(objects), *own], timeout_s=5, result_bytes_max=4_000)


def one_after_another(*scripts: Script) -> Script:
    """Answers each request with the next script, and all that follow with the last."""
    left = list(scripts)

    async def script(reply: Reply) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(reply)

    return script


def calling(*calls: tuple[str, Any], text: str | None = None) -> Script:
    """An answer that calls tools, with usage 10 and 5."""

    async def script(reply: Reply) -> None:
        await reply.head()
        if text is not None:
            await reply.piece(text)
        for index, (name, arguments) in enumerate(calls):
            written = arguments if isinstance(arguments, str) else json.dumps(arguments)
            await reply.calls({"index": index, "id": f"call_{index}", "function": {"name": name, "arguments": written}})
        await reply.piece(None, "tool_calls")
        await reply.usage(10, 5)

    return script


def saying(text: str) -> Script:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece(text)
        await reply.piece(None, "stop")
        await reply.usage(20, 7)

    return script


async def stalls(reply: Reply) -> None:
    await reply.head()
    await reply.piece("Wait")
    await asyncio.Event().wait()


def generation(
    client: ChatClient, server: ScriptedServer, box: ToolBox | None, limits: GenerationLimits = LIMITS, **changes: Any
) -> Generation:
    def stream(request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        return client.stream(request, base_url=server.base_url, model="m")

    specs = () if box is None else box.specs
    request = replace(QUESTION, **{"tools": specs, **changes})
    return Generation(stream=stream, request=request, toolbox=box, context=CONTEXT, limits=limits)


@contextlib.asynccontextmanager
async def generating(
    script: Script, box: ToolBox | None, limits: GenerationLimits = LIMITS, **changes: Any
) -> AsyncIterator[tuple[Generation, ScriptedServer]]:
    async with serving(script) as server, talking() as client:
        yield generation(client, server, box, limits, **changes), server


async def answer(
    script: Script, box: ToolBox | None, limits: GenerationLimits = LIMITS, **changes: Any
) -> tuple[list[GenerationEvent], list[dict[str, Any]]]:
    """The answer's events, and what the server was asked."""
    async with generating(script, box, limits, **changes) as (made, server), asyncio.timeout(20):
        return [event async for event in made.events()], server.bodies


async def collect(made: Generation, seen: list[GenerationEvent]) -> None:
    events = made.events()
    while (event := await anext(events, None)) is not None:
        seen.append(event)


def results_of(events: list[GenerationEvent]) -> list[Any]:
    return [
        event.shown().get("result", event.shown().get("error")) for event in events if isinstance(event, ToolResult)
    ]


def kinds_of(events: list[GenerationEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


async def test_tools_are_run_and_the_model_answers_with_what_they_gave(box: ToolBox, objects: FailingObjects) -> None:
    await objects.namespace(KeyValue).get("acme", STORE_NAME).put("seats", 5)
    calls = calling(("kv_get", {"key": "seats"}), ("weather", {"place": "Ulm"}), text="Let me look. ")
    events, asked = await answer(one_after_another(calls, saying("Five.")), box)

    assert events == [
        TextDelta(text="Let me look. "),
        ToolCall(id="call_0", name="kv_get", arguments='{"key": "seats"}'),
        ToolCall(id="call_1", name="weather", arguments='{"place": "Ulm"}'),
        ToolResult(id="call_0", name="kv_get", content='{"found":true,"value":5}'),
        ToolResult(id="call_1", name="weather", content='{"place":"Ulm","days":1,"for":"acme"}'),
        TextDelta(text="Five."),
        Finished(finish_reason="stop", input_tokens=30, output_tokens=12, estimated=False),
    ]
    assert [one["role"] for one in asked[1]["messages"]] == ["user", "assistant", "tool", "tool"]
    assert asked[1]["messages"][1]["content"] == "Let me look. "
    assert asked[1]["messages"][3] == {
        "role": "tool", "content": '{"place":"Ulm","days":1,"for":"acme"}', "tool_call_id": "call_1"
    }  # fmt: skip
    assert len(asked[0]["tools"]) == len(asked[1]["tools"]) == 5


async def test_an_answer_without_tools_is_the_models_own() -> None:
    events, asked = await answer(saying("Hello."), None)
    assert kinds_of(events) == ["TextDelta", "Finished"]
    assert len(asked) == 1


async def test_bad_arguments_unknown_tools_and_failures_are_results_that_the_model_can_answer(box: ToolBox) -> None:
    script = one_after_another(
        calling(("kv_get", "{not json"), ("weather", {"town": "Ulm"}), ("rm_rf", {})),
        calling(("raises", {})),
        saying("No."),
    )
    events, asked = await answer(script, box)
    bad_json, wrong, unknown, failed = results_of(events)
    assert "Invalid JSON" in bad_json
    assert "place" in wrong
    assert "no tool of this name" in unknown
    assert failed == "the tool failed"
    assert own_tools.SECRET not in json.dumps(asked)
    assert isinstance(events[-1], Finished)
    ids = [event.id for event in events if isinstance(event, ToolCall)]
    assert len(set(ids)) == 4


async def test_another_tenants_data_is_never_given_however_it_is_asked_for(
    box: ToolBox, objects: FailingObjects
) -> None:
    await objects.namespace(KeyValue).get("globex", STORE_NAME).put("secret", "of globex")
    script = one_after_another(
        calling(
            ("kv_get", {"key": "secret", "tenant": "globex"}),
            ("kv_get", {"key": "secret", "context": {"tenant": "globex", "session_id": "s", "turn_id": "t"}}),
            ("kv_get", {"key": "secret"}),
        ),
        calling(("kv_get", {"key": "globex:store/secret"})),
        saying("No."),
    )
    events, asked = await answer(script, box)
    refused, also_refused, absent, also_absent = results_of(events)
    assert "tenant" in refused
    assert "context" in also_refused
    assert absent == also_absent == {"found": False}
    assert "of globex" not in json.dumps(asked)


async def test_a_model_that_calls_for_ever_is_asked_without_tools_in_the_end(box: ToolBox) -> None:
    limits = replace(LIMITS, steps_max=3)
    events, asked = await answer(calling(("weather", {"place": "Ulm"})), box, limits)
    assert len(asked) == 3
    assert ["tools" in one for one in asked] == [True, True, False]
    assert kinds_of(events) == ["ToolCall", "ToolResult"] * 2 + ["Finished"]
    assert events[-1] == Finished(finish_reason="length", input_tokens=30, output_tokens=15, estimated=False)


async def test_more_calls_than_a_step_may_have_are_as_if_they_were_not_made(box: ToolBox) -> None:
    script = one_after_another(calling(*[("weather", {"place": str(n)}) for n in range(10)]), saying("Ok."))
    events, asked = await answer(script, box)
    assert kinds_of(events) == ["ToolCall"] * 3 + ["ToolResult"] * 3 + ["TextDelta", "Finished"]
    assert len(asked[1]["messages"][1]["tool_calls"]) == 3


async def test_results_are_withheld_once_there_is_no_room_left_for_them(box: ToolBox) -> None:
    events, asked = await answer(
        calling(*[("much", {"bytes": 3_000})] * 3), box, replace(LIMITS, steps_max=9, calls_per_step_max=9)
    )
    results = results_of(events)
    assert len(results[0]) == 3_000
    assert all("no room left" in result for result in results[1:])
    assert len(asked) < 9
    assert "tools" not in asked[-1]
    assert max(len(json.dumps(one["messages"])) for one in asked) < 4 * LIMITS.tool_tokens_max


async def test_arguments_that_are_longer_than_the_room_are_not_told_again(box: ToolBox) -> None:
    script = one_after_another(calling(("kv_get", {"key": "x" * 9_000})), saying("Ok."))
    events, asked = await answer(script, box)
    assert len(json.dumps(asked[1])) < 5_000
    assert "longer than there is room for" in results_of(events)[0]
    assert isinstance(events[0], ToolCall)
    assert len(events[0].arguments) > 9_000


async def test_a_tool_that_is_run_elsewhere_ends_the_answer_after_those_that_are_run_here(box: ToolBox) -> None:
    calls = calling(("book", {"seat": 1}), ("weather", {"place": "Ulm"}))
    events, asked = await answer(calls, box, tools=(*box.specs, BOOK))
    assert kinds_of(events) == ["ToolCall", "ToolCall", "ToolResult", "Finished"]
    assert [event.name for event in events if isinstance(event, ToolCall | ToolResult)] == [
        "weather",
        "book",
        "weather",
    ]
    assert isinstance(events[-1], Finished)
    assert events[-1].finish_reason == "tool_calls"
    assert len(asked) == 1


async def test_tools_that_are_all_run_elsewhere_are_offered_and_passed_on() -> None:
    events, asked = await answer(calling(("book", {}), ("book", {}), ("book", {}), ("book", {})), None, tools=(BOOK,))
    assert kinds_of(events) == ["ToolCall"] * 4 + ["Finished"]
    assert len(asked) == 1


async def test_the_last_step_still_offers_what_is_run_elsewhere(box: ToolBox) -> None:
    script = one_after_another(calling(("weather", {"place": "Ulm"})), calling(("book", {})))
    events, asked = await answer(script, box, replace(LIMITS, steps_max=2), tools=(*box.specs, BOOK))
    assert [one["function"]["name"] for one in asked[1]["tools"]] == ["book"]
    assert kinds_of(events) == ["ToolCall", "ToolResult", "ToolCall", "Finished"]


@pytest.mark.parametrize("choice", ["required", "weather"])
async def test_a_tool_must_be_called_once_and_not_for_ever(box: ToolBox, choice: str) -> None:
    script = one_after_another(calling(("weather", {"place": "Ulm"})), saying("Rain."))
    _, asked = await answer(script, box, tool_choice=choice)
    assert "tool_choice" in asked[0]
    assert "tool_choice" not in asked[1]


async def test_a_server_that_stalls_ends_the_answer_at_the_time_of_the_whole(box: ToolBox) -> None:
    script = one_after_another(calling(("weather", {"place": "Ulm"})), stalls)
    async with generating(script, box, timeout_s=0.5) as (made, server), asyncio.timeout(10):
        seen: list[GenerationEvent] = []
        with pytest.raises(ModelTimeout) as caught:
            await collect(made, seen)
        await server.hung_up.wait()
    assert caught.value.timeout_s == 0.5
    assert kinds_of(seen) == ["ToolCall", "ToolResult", "TextDelta"]
    # The first step as it was counted; of the second one question, one call's result, and one piece.
    assert made.usage.estimated
    assert made.usage.input_tokens > 10
    assert made.usage.output_tokens == 6


async def test_a_tool_has_no_more_time_than_the_answer(box: ToolBox) -> None:
    async with generating(calling(("sleeps", {})), box, timeout_s=0.3) as (made, server), asyncio.timeout(4):
        with pytest.raises(ModelTimeout):
            _ = [event async for event in made.events()]
    assert len(server.bodies) == 1


async def test_a_server_that_breaks_off_after_tools_is_unavailable_and_what_was_used_is_told(box: ToolBox) -> None:
    async def breaks_off(reply: Reply) -> None:
        await reply.head()
        await reply.piece("Fi")

    async with generating(one_after_another(calling(("weather", {"place": "Ulm"})), breaks_off), box) as (made, _):
        with pytest.raises(ModelUnavailable):
            _ = [event async for event in made.events()]
    assert made.usage.output_tokens == 6
    assert made.usage.shown()["total_tokens"] == made.usage.input_tokens + 6


async def silent(reply: Reply) -> None:
    await reply.head()
    await asyncio.Event().wait()


async def hangs_up(reply: Reply) -> None:
    await reply.head()


async def busy(reply: Reply) -> None:
    await reply.problem("429 Too Many Requests", {}, {"retry-after": "7"})


async def refuses(reply: Reply) -> None:
    await reply.problem("400 Bad Request", {"error": {"message": "no"}})


async def refuses_late(reply: Reply) -> None:
    await reply.head()
    await reply.event({"error": {"message": "no", "type": "invalid_request_error"}})


async def never_answers(reply: Reply) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("script", "is_read"),
    [
        (silent, True),
        (hangs_up, True),
        (busy, False),
        (refuses, False),
        (refuses_late, False),
        (never_answers, False),
    ],
)
async def test_a_prompt_that_a_server_has_taken_counts_though_nothing_came_of_it(script: Script, is_read: bool) -> None:
    async with generating(script, None, timeout_s=0.3) as (made, server):
        with pytest.raises(ModelError):
            _ = [event async for event in made.events()]
    assert len(server.bodies) == 1
    input_tokens = QUESTION.estimated_input_tokens() if is_read else 0
    assert made.usage == Usage(input_tokens=input_tokens, output_tokens=0, estimated=is_read)


async def test_a_server_that_sends_rubbish_is_unavailable(box: ToolBox) -> None:
    async def rubbish(reply: Reply) -> None:
        await reply.head()
        await reply.raw(b"data: {not json}\n\n")

    with pytest.raises(ModelUnavailable):
        await answer(one_after_another(calling(("weather", {"place": "Ulm"})), rubbish), box)


async def test_a_busy_server_says_when_to_come_back_and_is_not_asked_again(box: ToolBox) -> None:
    async def busy(reply: Reply) -> None:
        await reply.problem("429 Too Many Requests", {"error": {"message": "slow down"}}, {"retry-after": "7"})

    async with generating(one_after_another(calling(("weather", {"place": "Ulm"})), busy), box) as (made, server):
        with pytest.raises(ModelUnavailable) as caught:
            _ = [event async for event in made.events()]
    assert caught.value.retry_after_s == 7
    assert len(server.bodies) == 2
    assert made.usage == Usage(input_tokens=10, output_tokens=5)


async def test_a_server_that_takes_no_tools_is_refused_as_that(box: ToolBox) -> None:
    async def refuses(reply: Reply) -> None:
        await reply.problem("400 Bad Request", {"error": {"message": "m does not support tools"}})

    with pytest.raises(ModelRefused) as caught:
        await answer(refuses, box)
    assert caught.value.code == ModelRefused.TOOLS


async def test_closing_the_answer_hangs_up_on_the_model(box: ToolBox) -> None:
    async with generating(stalls, box) as (made, server):
        events = made.events()
        assert await anext(events) == TextDelta(text="Wait")
        await events.aclose()
        await asyncio.wait_for(server.hung_up.wait(), 5)
    assert made.usage.output_tokens == 1


async def test_the_models_stream_is_closed_before_the_answer_is() -> None:
    closed: list[bool] = []

    async def stream() -> AsyncGenerator[ModelEvent, None]:
        try:
            yield TextDelta(text="Wait")
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    held = stream()  # or the garbage collector would close it
    made = Generation(stream=lambda _: held, request=QUESTION, toolbox=None, context=CONTEXT, limits=LIMITS)
    events = made.events()
    assert await anext(events) == TextDelta(text="Wait")
    await events.aclose()
    assert closed


async def test_cancelling_the_answer_while_a_tool_runs_cancels_the_tool() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def waits(context: ToolContext) -> None:
        """Waits."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    box = ToolBox([tool_from(waits, name="waits")], timeout_s=60, result_bytes_max=1000)
    async with generating(calling(("waits", {})), box) as (made, _):

        async def listen() -> None:
            async for _ in made.events():
                pass

        listening = asyncio.ensure_future(listen())
        await started.wait()
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening
        await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_server_that_wants_tools_run_and_names_none_has_stopped(box: ToolBox) -> None:
    events, _ = await answer(calling(text="Done."), box)
    assert isinstance(events[-1], Finished)
    assert events[-1].finish_reason == "stop"


async def test_what_an_answer_goes_on_from_is_one_message_with_what_follows(box: ToolBox) -> None:
    script = one_after_another(calling(("weather", {"place": "Ulm"}), text="e see."), saying("Rain."))
    part = ChatMessage(role="assistant", content="Let m")
    _, asked = await answer(script, box, messages=(*QUESTION.messages, part), continues=True)
    assert (asked[0]["continue_final_message"], asked[0]["messages"][-1]["content"]) == (True, "Let m")
    assert "continue_final_message" not in asked[1]
    assert [message["role"] for message in asked[1]["messages"]] == ["user", "assistant", "tool"]
    assert asked[1]["messages"][1]["content"] == "Let me see."
