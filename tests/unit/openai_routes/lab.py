"""What do tests of /v1 share? The interface over turns that really run in this process, and OpenAI's own package."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
from fastapi import FastAPI

from configs.service import RequestLimits, ServiceConfig
from deployments.chat_request import ChatRequest, Finished, ModelEvent, ToolCall
from deployments.ingress import app as ingress
from tests.unit.handles import EchoModel, Handle, WordEmbedder, services_over
from tests.unit.talk import TENANTS, Talk, talk_at

CONFIG = ServiceConfig(limits=RequestLimits(message_chars_max=100))
PIECES = ("line\r\n\nevent: error\n", "🐟")
TEXT = "".join(PIECES)
TOOL: dict[str, Any] = {
    "name": "look_up",
    "description": "Looks a word up.",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
}


class LabModel(EchoModel):
    """Says its pieces, and then calls what `calls` holds."""

    def __init__(self, *pieces: str) -> None:
        super().__init__(*pieces)
        self.calls: list[ToolCall] = []
        self.finish_reason = "stop"

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        async for event in super().stream(request):
            if not isinstance(event, Finished):
                yield event
                continue
            for call in self.calls:
                yield call
            yield Finished(
                finish_reason="tool_calls" if self.calls else self.finish_reason,
                input_tokens=event.input_tokens,
                output_tokens=event.output_tokens,
                estimated=event.estimated,
            )


class LabEmbedder(WordEmbedder):
    async def tokens(self, texts: list[str]) -> int:
        return sum(len(text.split()) for text in texts)


class Lab:
    """A service whose model says what hurts most in a stream of events."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.model = LabModel(*PIECES)
        self.embedder = LabEmbedder()
        self.chat = Handle(talk.replica(self.model))
        services = services_over(
            talk.objects,
            talk.clock,
            TENANTS,
            config=CONFIG,
            chat=self.chat,
            model=self.model,
            embedding=Handle(self.embedder),
            search=talk.search,
        )
        self.services = dataclasses.replace(services, sessions=talk.sessions, turns=talk.turns)

    @asynccontextmanager
    async def client(self, app: FastAPI, key: str = "sk-acme") -> AsyncIterator[openai.AsyncOpenAI]:
        app.state.services = self.services
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with openai.AsyncOpenAI(
            base_url="http://mobula/v1",
            api_key=key,
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:
            yield client


@contextmanager
def lab_at(data_dir: Path) -> Iterator[Lab]:
    with talk_at(data_dir) as talk:
        yield Lab(talk)


def build(data_dir: Path) -> FastAPI:
    """Made once for a module, since describing the API takes a while; each test puts its own services behind it."""
    with lab_at(data_dir) as lab:
        return ingress.build(lab.services)
