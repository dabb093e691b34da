"""What does an OpenAI-compatible server do to a client, on a real connection, when it does as a test says?"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.chat_client import ChatClient

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

    async def calls(self, *pieces: dict[str, Any], finish_reason: str | None = None) -> None:
        """A chunk of the `tool_calls` that an answer makes."""
        await self.event({"choices": [{"index": 0, "delta": {"tool_calls": pieces}, "finish_reason": finish_reason}]})

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
