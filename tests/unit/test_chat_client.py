"""Does the client turn whatever a server does into an answer or into the right error, and stop when nobody listens?"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import pickle
from dataclasses import replace
from typing import Any

import pytest

from deployments import chat_client
from deployments.chat_client import ANSWER_BYTES_MAX, MAX_RETRY_AFTER_S, PROBLEM_CHARS_MAX, TOKENS_MAX
from deployments.chat_request import (
    Accepted,
    ChatMessage,
    ChatRequest,
    Finished,
    ModelEvent,
    ModelOptions,
    TextDelta,
    ToolCall,
    ToolSpec,
)
from deployments.errors import ModelError, ModelRefused, ModelTimeout, ModelUnavailable
from deployments.tool_call_pieces import ARGUMENTS_BYTES_MAX, CALLS_MAX
from tests.unit.scripted_server import Reply, Script, serving, talking

QUESTION = ChatRequest(
    messages=(ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello?")),
    max_tokens=16,
    timeout_s=10,
    temperature=0.5,
)


async def ask(script: Script, request: ChatRequest = QUESTION) -> list[ModelEvent]:
    """The answer, after the server has taken the request."""
    async with serving(script) as server, talking() as client:
        events = [event async for event in client.stream(request, base_url=server.base_url, model="m")]
    assert events.pop(0) == Accepted()
    return events


async def failing(script: Script, request: ChatRequest = QUESTION) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await ask(script, request)
    received: ModelError = pickle.loads(pickle.dumps(caught.value))  # as it reaches another process
    return received


async def hello(reply: Reply) -> None:
    await reply.head()
    await reply.piece("Hel")
    await reply.piece("lo")
    await reply.piece(None, "stop")
    await reply.usage(11, 7)
    await reply.event(b"[DONE]")


async def test_an_answer_arrives_piece_by_piece_and_ends_with_its_usage() -> None:
    assert await ask(hello) == [
        TextDelta(text="Hel"),
        TextDelta(text="lo"),
        Finished(finish_reason="stop", input_tokens=11, output_tokens=7, estimated=False),
    ]


async def test_the_request_carries_what_was_asked() -> None:
    async with serving(hello) as server, talking() as client:
        _ = [event async for event in client.stream(QUESTION, base_url=server.base_url, model="llama")]

    assert server.heads[0].startswith("post /v1/chat/completions ")
    assert server.bodies == [
        {
            "model": "llama",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
            "max_tokens": 16,
            "temperature": 0.5,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


async def test_an_answer_that_is_gone_on_with_is_asked_for_as_such() -> None:
    part = ChatMessage(role="assistant", content="Hel")
    async with serving(hello) as server, talking() as client:
        request = replace(QUESTION, messages=(*QUESTION.messages, part), continues=True)
        _ = [event async for event in client.stream(request, base_url=server.base_url, model="m")]

    assert server.bodies[0]["messages"][-1] == {"role": "assistant", "content": "Hel"}
    assert server.bodies[0]["continue_final_message"] is True
    assert server.bodies[0]["add_generation_prompt"] is False


async def test_what_else_is_asked_for_is_sent_in_the_protocols_words() -> None:
    options = ModelOptions(
        top_p=0.5,
        seed=1,
        presence_penalty=0,
        frequency_penalty=-1,
        stop=["a"],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        user="ann",
    )
    async with serving(hello) as server, talking() as client:
        request = replace(QUESTION, options=options)
        _ = [event async for event in client.stream(request, base_url=server.base_url, model="m")]

    sent = server.bodies[0]
    assert {name: sent.pop(name) for name in options.given()} == {
        "top_p": 0.5,
        "seed": 1,
        "presence_penalty": 0,
        "frequency_penalty": -1,
        "stop": ["a"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "user": "ann",
    }
    assert set(sent) == {"model", "messages", "max_tokens", "temperature", "stream", "stream_options"}


async def test_no_temperature_is_sent_where_none_is_asked_for() -> None:
    async with serving(hello) as server, talking() as client:
        request = replace(QUESTION, temperature=None)
        _ = [event async for event in client.stream(request, base_url=server.base_url, model="m")]

    assert "temperature" not in server.bodies[0]


async def test_tokens_are_estimated_and_said_to_be_where_a_server_counts_none() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a")
        await reply.piece("b")
        await reply.piece(None, "length")
        await reply.event(b"[DONE]")

    events = await ask(script)

    assert events[-1] == Finished(finish_reason="length", input_tokens=4, output_tokens=2, estimated=True)


@pytest.mark.parametrize("count", [-1, TOKENS_MAX + 1, 2**63, True, 7.0, "7", None])
@pytest.mark.parametrize("which", ["prompt_tokens", "completion_tokens"])
async def test_counts_that_can_not_be_are_no_counts(which: str, count: Any) -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a", "stop")
        await reply.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9, which: count}})

    end = (await ask(script))[-1]

    assert end == Finished(finish_reason="stop", input_tokens=4, output_tokens=1, estimated=True)


async def test_an_answer_without_its_closing_mark_counts_once_its_reason_has_come() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a", "stop")

    assert [type(event) for event in await ask(script)] == [TextDelta, Finished]


async def test_events_without_data_are_passed_over() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.raw(b": here\n\nretry: 3000\n\n")
        await reply.piece("a")
        await reply.raw(b"id: 7\n\nevent: ping\n\ndata:\n\n")
        await reply.piece("b", "stop")
        await reply.event(b"[DONE]")

    assert [event.text for event in await ask(script) if isinstance(event, TextDelta)] == ["a", "b"]


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"rubbish\r\n", b""])
async def test_a_connection_that_may_be_used_again_is_once_its_answer_was_read_to_the_end(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(chat_client, "END_WITHIN_S", 10.0 if end else 0.01)
    # As where the server is asked by TLS.
    monkeypatch.setattr(chat_client, "_use_plain_connection_once", _as_it_is)
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for part in (b'{"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}', b"[DONE]"):
                    event = b"data: " + part + b"\n\n"
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
                # The end comes by itself, when the last event has been read.
                await asyncio.sleep(0)
                writer.write(end)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    async with listener, talking() as client:
        for _ in range(3):
            events = [event async for event in client.stream(QUESTION, base_url=base_url, model="m")]
            assert [type(event) for event in events] == [Accepted, TextDelta, Finished]
    assert connections == (1 if end.startswith(b"0") else 3)


async def _as_it_is(_: object) -> None:
    pass


async def test_a_key_is_read_from_the_variable_that_the_request_names() -> None:
    environ = {"ACME_KEY": "sk-acme\n", "OPENAI_API_KEY": "sk-other"}
    async with serving(hello) as server, talking(environ) as client:
        request = replace(QUESTION, api_key_env="ACME_KEY")
        _ = [event async for event in client.stream(request, base_url=server.base_url, model="m")]

    assert "authorization: bearer sk-acme\r\n" in server.heads[0]


async def test_no_key_is_sent_but_the_one_that_the_request_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Leak: sk-of-somebody-else\nAuthorization: sk-of-somebody-else")
    async with serving(hello) as server, talking() as client:
        _ = [event async for event in client.stream(QUESTION, base_url=server.base_url, model="m")]

    assert "sk-of-somebody-else" not in server.heads[0]


async def test_a_missing_key_is_refused_by_the_name_of_its_variable() -> None:
    async with serving(hello) as server, talking({"ACME_KEY": " "}) as client:
        request = replace(QUESTION, api_key_env="ACME_KEY")
        with pytest.raises(ModelRefused, match="ACME_KEY"):
            _ = [event async for event in client.stream(request, base_url=server.base_url, model="m")]

    assert server.heads == []


async def test_cookies_of_one_answer_are_not_sent_with_the_next_question() -> None:
    async def script(reply: Reply) -> None:
        await reply.head(headers={"set-cookie": "who=acme; Path=/"})
        await reply.piece("a", "stop")

    async with serving(script) as server, talking() as client:
        for _ in range(2):
            _ = [event async for event in client.stream(QUESTION, base_url=server.base_url, model="m")]

    assert len(server.heads) == 2
    assert "cookie:" not in server.heads[1]


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with serving(hello) as server:
        pass
    async with talking() as client:
        with pytest.raises(ModelUnavailable) as caught:
            _ = [event async for event in client.stream(QUESTION, base_url=server.base_url, model="m")]

    assert caught.value.retryable
    assert caught.value.retry_after_s > 0


@pytest.mark.parametrize(
    ("header", "expected_s"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("99999", MAX_RETRY_AFTER_S),
        ("Fri, 15 Jan 2027 08:00:20 GMT", 20.0),
        ("Fri, 15 Jan 2021 08:00:00 GMT", 1.0),
        ("nan", 1.0),
        ("soon", 1.0),
        ("", 1.0),
    ],
)
async def test_too_many_requests_are_retryable_when_the_server_says(header: str, expected_s: float) -> None:
    async def script(reply: Reply) -> None:
        await reply.problem("429 Too Many Requests", {"error": {"message": "slow down"}}, {"retry-after": header})

    error = await failing(script)

    assert isinstance(error, ModelUnavailable)
    assert error.retry_after_s == expected_s


@pytest.mark.parametrize("status", ["500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable"])
async def test_a_server_at_fault_is_unavailable_and_asked_only_once(status: str) -> None:
    async def script(reply: Reply) -> None:
        await reply.problem(status, b"<html>oh no</html>")

    async with serving(script) as server, talking() as client:
        with pytest.raises(ModelUnavailable):
            _ = [event async for event in client.stream(QUESTION, base_url=server.base_url, model="m")]

    assert len(server.heads) == 1


async def test_a_request_at_fault_is_refused_in_the_servers_words() -> None:
    async def script(reply: Reply) -> None:
        await reply.problem("404 Not Found", {"error": {"message": "no model\r\nnamed m", "code": "model_not_found"}})

    error = await failing(script)

    assert isinstance(error, ModelRefused)
    assert error.code == "model_not_found"
    assert "no model  named m" in error.problem
    assert not error.retryable


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long", "code": "context_length_exceeded", "type": "invalid_request_error"}},
        {"error": {"message": "too long", "code": 400, "type": "exceed_context_size_error"}},
    ],
    ids=["openai", "llama.cpp"],
)
async def test_messages_that_are_too_long_are_known_by_one_code(body: dict[str, Any]) -> None:
    async def script(reply: Reply) -> None:
        await reply.problem("400 Bad Request", body)

    error = await failing(script)

    assert isinstance(error, ModelRefused)
    assert error.code == ModelRefused.CONTEXT_LENGTH


@pytest.mark.parametrize("depth", [100_000, 950, 700])
@pytest.mark.parametrize("is_field", [True, False])
async def test_an_error_that_is_too_deep_is_an_error_all_the_same(depth: int, is_field: bool) -> None:
    deep = b"[" * depth + b"]" * depth

    async def script(reply: Reply) -> None:
        await reply.problem("400 Bad Request", b'{"error": %b}' % deep if is_field else deep)

    async def inside(reply: Reply) -> None:
        await reply.head()
        await reply.event(b'{"error": %b}' % deep)

    error = await failing(script)
    assert isinstance(error, ModelRefused)
    assert len(error.problem) <= PROBLEM_CHARS_MAX
    assert isinstance(await failing(inside), ModelUnavailable)


async def test_what_a_server_calls_an_error_can_be_told_to_anybody() -> None:
    async def script(reply: Reply) -> None:
        await reply.problem(
            "400 Bad Request", b'{"error": {"message": "no\\ud83d", "code": "\\ud83d%b"}}' % (b"x" * 999)
        )

    error = await failing(script)

    assert isinstance(error, ModelRefused)
    assert error.code == " " + "x" * (PROBLEM_CHARS_MAX - 1)
    str(error).encode()


async def test_a_refused_key_is_not_quoted() -> None:
    async def script(reply: Reply) -> None:
        await reply.problem("401 Unauthorized", {"error": {"message": "Incorrect API key provided: sk-acme"}})

    error = await failing(script)

    assert isinstance(error, ModelRefused)
    assert "sk-acme" not in str(error)


async def test_a_redirect_is_not_followed() -> None:
    async def script(reply: Reply) -> None:
        await reply.problem("307 Temporary Redirect", b"", {"location": "http://169.254.169.254/latest"})

    error = await failing(script)

    assert isinstance(error, ModelRefused)


async def test_a_server_that_never_answers_times_out() -> None:
    async def script(reply: Reply) -> None:
        await asyncio.Event().wait()

    error = await failing(script, replace(QUESTION, timeout_s=0.1))

    assert isinstance(error, ModelTimeout)
    assert error.timeout_s == 0.1


async def test_a_server_that_has_taken_the_request_is_known_before_it_says_anything() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await asyncio.Event().wait()

    async with serving(script) as server, talking() as client:
        answer = client.stream(replace(QUESTION, timeout_s=0.3), base_url=server.base_url, model="m")
        assert await anext(answer) == Accepted()
        with pytest.raises(ModelTimeout):
            await anext(answer)


async def test_a_server_that_stalls_in_the_middle_times_out_after_its_pieces_were_given() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a")
        await asyncio.Event().wait()

    async with serving(script) as server, talking() as client:
        answer = client.stream(replace(QUESTION, timeout_s=0.3), base_url=server.base_url, model="m")
        assert [await anext(answer), await anext(answer)] == [Accepted(), TextDelta(text="a")]
        with pytest.raises(ModelTimeout):
            await anext(answer)
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a")

    assert isinstance(await failing(script), ModelUnavailable)


async def test_a_connection_cut_inside_a_chunk_is_unavailable() -> None:
    async def script(reply: Reply) -> None:
        await reply.head(headers={"transfer-encoding": "chunked"})
        await reply.raw(b"ff\r\ndata: {")

    assert isinstance(await failing(script), ModelUnavailable)


@pytest.mark.parametrize(
    "rubbish",
    [b"<html>welcome</html>", b"data: {not json}\n\n", b"data: 5\n\n", b"data: null\n\n", b'data: {"choices": 3}\n\n',
     b'data: {"choices": [7]}\n\n', b'data: {"choices": [{"delta": {"content": 5}}]}\n\n', b"data: \xff\xfe\n\n", b""],
)  # fmt: skip
async def test_rubbish_is_unavailable(rubbish: bytes) -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.raw(rubbish)

    assert isinstance(await failing(script), ModelUnavailable)


async def test_an_error_inside_the_stream_is_unavailable_unless_it_blames_the_request() -> None:
    async def overloaded(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a")
        await reply.event({"error": {"message": "out of memory", "type": "server_error", "code": 500}})

    async def too_long(reply: Reply) -> None:
        await reply.head()
        await reply.event({"error": {"message": "too long", "type": "exceed_context_size_error", "code": 400}})

    assert isinstance(await failing(overloaded), ModelUnavailable)
    assert isinstance(await failing(too_long), ModelRefused)


async def test_an_answer_without_end_is_cut_off() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        for _ in range(ANSWER_BYTES_MAX // 1_000_000 + 2):
            await reply.raw(b"data: " + b"x" * 1_000_000)

    assert isinstance(await failing(script), ModelUnavailable)


async def test_a_packed_answer_is_not_unpacked() -> None:
    async def script(reply: Reply) -> None:
        await reply.head(headers={"content-encoding": "gzip"})
        await reply.raw(gzip.compress(b"data: [DONE]\n\n"))

    assert isinstance(await failing(script), ModelUnavailable)


async def test_closing_the_answer_hangs_up_on_the_server() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a")
        await asyncio.Event().wait()

    async with serving(script) as server, talking() as client:
        answer = client.stream(QUESTION, base_url=server.base_url, model="m")
        assert [await anext(answer), await anext(answer)] == [Accepted(), TextDelta(text="a")]
        await answer.aclose()
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_cancelling_the_listener_hangs_up_on_the_server() -> None:
    started = asyncio.Event()

    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a")
        started.set()
        await asyncio.Event().wait()

    async with serving(script) as server, talking() as client:

        async def listen() -> None:
            async for _ in client.stream(QUESTION, base_url=server.base_url, model="m"):
                pass

        listener = asyncio.ensure_future(listen())
        await started.wait()
        listener.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listener
        await asyncio.wait_for(server.hung_up.wait(), 5)


WEATHER = ToolSpec(
    name="weather",
    description="The weather of a place.",
    parameters={"type": "object", "properties": {"place": {"type": "string"}}},
)
WITH_TOOLS = replace(QUESTION, tools=(WEATHER,), tool_choice="auto")


def piece(index: int | None, call_id: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    """A piece of a call, without what is None."""
    function = {"name": name, "arguments": arguments}
    whole = {
        "index": index,
        "id": call_id,
        "function": {key: value for key, value in function.items() if value is not None},
    }
    return {key: value for key, value in whole.items() if value is not None}


async def calls_in(*pieces: dict[str, Any], finish_reason: str = "tool_calls") -> list[tuple[str, str, str]]:
    """The calls that are made of the pieces, each sent in a chunk of its own."""

    async def script(reply: Reply) -> None:
        await reply.head()
        for one in pieces:
            await reply.calls(one)
        await reply.piece(None, finish_reason)

    events = await ask(script, WITH_TOOLS)
    return [(event.id, event.name, event.arguments) for event in events if isinstance(event, ToolCall)]


async def test_tools_are_offered_in_the_request() -> None:
    async with serving(hello) as server, talking() as client:
        _ = [event async for event in client.stream(WITH_TOOLS, base_url=server.base_url, model="m")]
        required = replace(WITH_TOOLS, tool_choice="weather")
        with pytest.raises(ModelRefused):
            _ = [event async for event in client.stream(required, base_url=server.base_url, model="m")]
        _ = [event async for event in client.stream(QUESTION, base_url=server.base_url, model="m")]

    function = {"name": "weather", "description": WEATHER.description, "parameters": dict(WEATHER.parameters)}
    assert server.bodies[0]["tools"] == [{"type": "function", "function": function}]
    assert server.bodies[0]["tool_choice"] == "auto"
    assert server.bodies[1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert not {"tools", "tool_choice"} & server.bodies[2].keys()


async def test_calls_and_their_results_are_sent_back_as_the_protocol_has_them() -> None:
    calls = (
        ToolCall(id="a", name="weather", arguments='{"place": "Ulm"}'),
        ToolCall(id="b", name="weather", arguments="{"),
    )
    messages = (
        *QUESTION.messages,
        ChatMessage(role="assistant", content="", tool_calls=calls),
        ChatMessage(role="tool", content='"rain"', tool_call_id="a"),
        ChatMessage(role="tool", content='{"error":"no JSON"}', tool_call_id="b"),
    )
    async with serving(hello) as server, talking() as client:
        request = replace(QUESTION, messages=messages)
        _ = [event async for event in client.stream(request, base_url=server.base_url, model="m")]

    assistant, *results = server.bodies[0]["messages"][2:]
    assert assistant == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Ulm"}'}},
            # A server that parses them would fail the whole request.
            {"id": "b", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        ],
    }
    assert results == [
        {"role": "tool", "content": '"rain"', "tool_call_id": "a"},
        {"role": "tool", "content": '{"error":"no JSON"}', "tool_call_id": "b"},
    ]


async def test_text_and_calls_of_one_answer_both_arrive() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("Let me look.")
        await reply.calls(piece(0, "a", "weather", ""))
        await reply.calls(piece(0, None, None, '{"place"'))
        await reply.calls(piece(0, None, None, ': "Ulm"}'), piece(1, "b", "weather", "{}"))
        await reply.piece(None, "tool_calls")
        await reply.usage(20, 9)

    assert await ask(script, WITH_TOOLS) == [
        TextDelta(text="Let me look."),
        ToolCall(id="a", name="weather", arguments='{"place": "Ulm"}'),
        ToolCall(id="b", name="weather", arguments="{}"),
        Finished(finish_reason="tool_calls", input_tokens=20, output_tokens=9, estimated=False),
    ]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([piece(1, "b", "g", "{}"), piece(0, "a", "f", "{"), piece(1, None, None, " "), piece(0, None, None, "}")],
         [("b", "g", "{} "), ("a", "f", "{}")]),
        ([piece(None, "a", "f", "{}"), piece(None, "b", "g", "{"), piece(None, None, None, "}")],
         [("a", "f", "{}"), ("b", "g", "{}")]),
        ([piece(0, "a", "f", "{}"), piece(0, "b", "g", "{"), piece(0, "b", None, "}")],
         [("a", "f", "{}"), ("b", "g", "{}")]),
        ([piece(0, "a", "f", "{"), piece(0, "a", "f", "}")], [("a", "f", "{}")]),
        ([piece(0, None, "f", "{}"), piece(1, None, "f", "{}")], [("call_1", "f", "{}"), ("call_2", "f", "{}")]),
        ([piece(0, "a", "f", "{}"), piece(1, "a", "f", "{}")], [("a", "f", "{}"), ("call_2", "f", "{}")]),
        ([piece(0, "bad id\n", "f", "{}"), piece(1, "x" * 999, "f", "{}")],
         [("call_1", "f", "{}"), ("call_2", "f", "{}")]),
        ([piece(0, "a", "f", {"x": 1})], [("a", "f", '{"x": 1}')]),
        ([piece(0, "a", "f", None)], [("a", "f", "{}")]),
        ([piece(0, "a", "functions.f g" + "h" * 99, "not json")], [("a", "functions_f_g" + "h" * 51, "not json")]),
        ([piece(0, "a", "f", '{"x": "\ud83d'), piece(0, None, None, '\ude00\ud800"}')],
         [("a", "f", '{"x": "😀\ufffd"}')]),
    ],
    ids=["interleaved", "no index", "one index for all", "name repeated", "no ids", "id doubled", "ids unfit",
         "arguments an object", "no arguments", "name unfit", "halves of characters"],
)  # fmt: skip
async def test_the_calls_of_careless_servers_are_understood(
    pieces: list[dict[str, Any]], expected: list[tuple[str, str, str]]
) -> None:
    assert await calls_in(*pieces) == expected


async def test_a_call_never_has_the_id_of_one_that_the_conversation_holds() -> None:
    earlier = ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="call_0", name="f", arguments="{}"),))
    result = ChatMessage(role="tool", content="1", tool_call_id="call_0")

    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.calls(piece(0, "call_0", "f", "{}"), finish_reason="tool_calls")

    events = await ask(script, replace(WITH_TOOLS, messages=(*QUESTION.messages, earlier, result)))

    assert isinstance(events[0], ToolCall)
    assert events[0].id not in ("call_0", "")


async def test_an_answer_with_calls_has_stopped_for_them_whatever_the_server_says() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.calls(piece(0, "a", "f", "{}"), finish_reason="stop")

    end = (await ask(script, WITH_TOOLS))[-1]

    assert isinstance(end, Finished)
    assert end.finish_reason == "tool_calls"


async def test_a_call_that_was_cut_for_length_is_no_call() -> None:
    assert await calls_in(
        piece(0, "a", "f", "{}"), piece(1, "b", "f", '{"place": "U'), finish_reason="length"
    ) == [("a", "f", "{}")]  # fmt: skip


async def test_calls_of_an_answer_that_breaks_off_are_not_given() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.calls(piece(0, "a", "f", "{}"))

    async with serving(script) as server, talking() as client:
        answer = client.stream(WITH_TOOLS, base_url=server.base_url, model="m")
        assert await anext(answer) == Accepted()
        with pytest.raises(ModelUnavailable):
            await anext(answer)


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(number, None, "f", "{}") for number in range(CALLS_MAX + 1)],
        [piece(0, "a", "f", "x" * 65_536) for _ in range(ARGUMENTS_BYTES_MAX // 65_536 + 1)],
        [piece(0, "a", None, "{}")],
        [{"index": "x", "function": 7}],
    ],
    ids=["too many", "too long", "no name", "no call"],
)
async def test_calls_that_no_answer_needs_are_unavailable(pieces: list[dict[str, Any]]) -> None:
    with pytest.raises(ModelUnavailable):
        await calls_in(*pieces)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("400 Bad Request", "registry.ollama.ai/library/gemma does not support tools"),
        ("400 Bad Request", '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        ("404 Not Found", "No endpoints found that support tool use."),
        ("422 Unprocessable Entity", "tools: Extra inputs are not permitted"),
        ("500 Internal Server Error", "tools param requires --jinja flag"),
    ],
)
async def test_a_server_that_can_take_no_tools_is_known_by_one_code(status: str, words: str) -> None:
    async def script(reply: Reply) -> None:
        await reply.problem(status, {"error": {"message": words}})

    error = await failing(script, WITH_TOOLS)

    assert isinstance(error, ModelRefused)
    assert error.code == ModelRefused.TOOLS
    assert words.split("'")[0] in error.problem
    assert "takes no tools" in str(error)


async def test_other_errors_are_not_laid_to_the_tools() -> None:
    async def broken(reply: Reply) -> None:
        await reply.problem("500 Internal Server Error", {"error": {"message": "Failed to parse tool call"}})

    async def unsupported(reply: Reply) -> None:
        await reply.problem("500 Internal Server Error", {"error": {"message": "tools are not supported"}})

    assert isinstance(await failing(broken, WITH_TOOLS), ModelUnavailable)
    assert isinstance(await failing(unsupported, QUESTION), ModelUnavailable)


async def test_a_server_that_ignores_a_tool_it_had_to_call_is_refused() -> None:
    error = await failing(hello, replace(WITH_TOOLS, tool_choice="required"))

    assert isinstance(error, ModelRefused)
    assert error.code == ModelRefused.TOOLS


async def test_half_a_character_becomes_what_utf_8_can_hold() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a\ud800b", "stop")

    assert (await ask(script))[0] == TextDelta(text="a\ufffdb")


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "user", "content": "", "tool_calls": (ToolCall(id="a", name="f", arguments="{}"),)},
        {"role": "tool", "content": "1"},
        {"role": "user", "content": "1", "tool_call_id": "a"},
    ],
)
def test_a_message_that_no_server_could_take_is_not_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="call"):
        ChatMessage(**fields)
