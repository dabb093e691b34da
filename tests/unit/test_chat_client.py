"""Does the client turn whatever a server does into an answer or into the right error, and stop when nobody listens?"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from deployments.chat_client import ANSWER_BYTES_MAX, MAX_CLIENTS, MAX_RETRY_AFTER_S, ChatClient
from deployments.chat_request import ChatMessage, ChatRequest, Finished, ModelEvent, TextDelta
from deployments.errors import ModelError, ModelRefused, ModelTimeout, ModelUnavailable

QUESTION = ChatRequest(
    messages=(ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello?")),
    max_tokens=16,
    timeout_s=10,
    temperature=0.5,
)
NOW = 1_800_000_000.0

Script = Callable[["Reply"], Awaitable[None]]


@dataclass
class Reply:
    """The side of a connection that a script writes to."""

    writer: asyncio.StreamWriter

    async def head(self, status: str = "200 OK", headers: Mapping[str, str] | None = None) -> None:
        lines = {"content-type": "text/event-stream", "connection": "close"} | dict(headers or {})
        text = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        await self.raw(text.encode())

    async def event(self, value: Any) -> None:
        await self.raw(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    async def piece(self, text: str | None, finish_reason: str | None = None) -> None:
        delta = {} if text is None else {"content": text}
        await self.event(
            {
                "id": "c",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
            }
        )

    async def usage(self, prompt_tokens: int, completion_tokens: int) -> None:
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        await self.event({"choices": [], "usage": counts | {"total_tokens": prompt_tokens + completion_tokens}})

    async def problem(self, status: str, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(
            status, {"content-type": "application/json", "content-length": str(len(data))} | dict(headers or {})
        )
        await self.raw(data)

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


@dataclass
class ScriptedServer:
    """An HTTP server that answers every request as its script says, and keeps what was asked."""

    script: Script
    base_url: str = ""
    heads: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(asyncio.ensure_future(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line[15:]) for line in head.splitlines() if line.startswith("content-length:"))
        self.heads.append(head)
        self.bodies.append(json.loads(await reader.readexactly(length)))
        script = asyncio.ensure_future(self.script(Reply(writer)))
        client_gone = asyncio.ensure_future(reader.read())
        await asyncio.wait({script, client_gone}, return_when=asyncio.FIRST_COMPLETED)
        if client_gone.done():
            self.hung_up.set()
        for task in (script, client_gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer(script)
    listener = await asyncio.start_server(scripted.accept, "127.0.0.1", 0)
    scripted.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield scripted
    finally:
        listener.close()
        await listener.wait_closed()
        await asyncio.wait_for(asyncio.gather(*scripted.connections), 5)


@contextlib.asynccontextmanager
async def talking(environ: Mapping[str, str] | None = None) -> AsyncIterator[ChatClient]:
    client = ChatClient(environ=environ or {}, clock=lambda: NOW, trust_environment=False)
    try:
        yield client
    finally:
        await client.close()


async def ask(script: Script, request: ChatRequest = QUESTION) -> list[ModelEvent]:
    async with serving(script) as server, talking() as client:
        return [event async for event in client.stream(request, base_url=server.base_url, model="m")]


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


async def test_an_answer_without_its_closing_mark_counts_once_its_reason_has_come() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a", "stop")

    assert [type(event) for event in await ask(script)] == [TextDelta, Finished]


async def test_a_key_is_read_from_the_variable_that_the_request_names() -> None:
    environ = {"ACME_KEY": "sk-acme\n", "OPENAI_API_KEY": "sk-other"}
    async with serving(hello) as server, talking(environ) as client:
        request = replace(QUESTION, api_key_env="ACME_KEY")
        _ = [event async for event in client.stream(request, base_url=server.base_url, model="m")]

    assert "authorization: bearer sk-acme\r\n" in server.heads[0]


async def test_the_package_sends_nothing_of_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_only_so_many_clients_are_remembered() -> None:
    async with serving(hello) as server, talking() as client:
        for number in range(MAX_CLIENTS + 3):
            base_url = server.base_url.replace("/v1", f"/{number}/v1")
            _ = [event async for event in client.stream(QUESTION, base_url=base_url, model="m")]

        assert len(client._clients) == MAX_CLIENTS


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


async def test_a_server_that_stalls_in_the_middle_times_out_after_its_pieces_were_given() -> None:
    async def script(reply: Reply) -> None:
        await reply.head()
        await reply.piece("a")
        await asyncio.Event().wait()

    async with serving(script) as server, talking() as client:
        answer = client.stream(replace(QUESTION, timeout_s=0.3), base_url=server.base_url, model="m")
        assert await anext(answer) == TextDelta(text="a")
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
        assert await anext(answer) == TextDelta(text="a")
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
