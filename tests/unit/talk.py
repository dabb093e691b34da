"""What do tests of chat turns share? Everything that a turn needs, in this process, and short ways to follow one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors import ObjectReset
from actors.document_index import Passage
from actors.message import Message
from actors.runtime.clock import ManualClock
from actors.turn import FINAL, TurnEvent, TurnInfo
from configs.budgets import BudgetConfig, ConcurrencyConfig
from configs.service import ServiceConfig
from configs.tenant import ModelConfig, RetrievalConfig, TenantConfig, ToolsConfig, TurnsConfig
from deployments.activity import ActivityLog
from deployments.chat import Chat
from deployments.documents import Found
from deployments.limit_counts import Outcome
from deployments.model_client import Models
from deployments.question import Asked, Question
from deployments.sessions import Sessions
from deployments.turns import Turns
from tests.unit.handles import FailingObjects, Handle, tenant

WITHIN_S = 20.0
TENANTS = {
    "acme": tenant("acme", model=ModelConfig(max_tokens=100, temperature=0.5, timeout_s=30, continues=False)),
    "lasting": tenant("lasting", model=ModelConfig(max_tokens=100)),
    "tight": tenant("tight", model=ModelConfig(max_tokens=100, context_tokens=400)),
    "stingy": tenant("stingy", retrieval=RetrievalConfig(context_chars_max=100)),
    "tooled": tenant(
        "tooled",
        model=ModelConfig(base_url="http://127.0.0.1:1/v1", model="m"),
        tools=ToolsConfig(enabled=("tests.unit.own_tools:whoami",)),
    ),
    "thrifty": tenant(
        "thrifty",
        model=ModelConfig(max_tokens=100),
        budgets=(BudgetConfig(name="daily", per="day", output_tokens=500),),
        concurrency=ConcurrencyConfig(per_client=6, per_tenant=7),
    ),
    "hasty": tenant("hasty", turns=TurnsConfig(on_conflict="reject", attempts_max=1)),
}


def question(message: str | None = "Why?", **fields: Any) -> Question:
    return Question(**{"tenant": "acme", "message": message, **fields})


def types_of(events: list[TurnEvent]) -> list[str]:
    return [event["type"] for event in events]


def text_of(events: list[TurnEvent]) -> str:
    return "".join(event["data"]["text"] for event in events if event["type"] == "text.delta")


def passage(number: int, text: str = "a passage") -> Passage:
    return {
        "id": f"d{number}:v:0",
        "document_id": f"d{number}",
        "title": f"Title {number}",
        "heading": "",
        "text": text,
        "start": 0,
        "end": len(text),
        "metadata": {},
    }


class Library:
    """Finds the passages it is given, and notes what it was asked for."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.asked: list[tuple[str, str, int | None]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def find(self, tenant: str, query: str, *, top_k: int | None = None) -> Found:
        self.asked.append((tenant, query, top_k))
        await self.may_answer.wait()
        return Found(self.passages, cached=False)


class Talk:
    """Sessions, and replicas that answer in them."""

    def __init__(self, data_dir: Path, tenants: Mapping[str, TenantConfig] = TENANTS) -> None:
        self.clock = ManualClock()
        self.objects = FailingObjects(data_dir, self.clock)
        self.tenants = tenants
        #: Where files would be that change them.
        self.tenants_dir = data_dir / "tenants"
        self.tenants_dir.mkdir()
        self.activity = ActivityLog(self.objects)
        self.sessions = Sessions(self.objects, tenants, self.activity, self.clock.now)
        self.turns = Turns(self.sessions)
        self.library = Library()
        #: What replicas have told of limits.
        self.counted: Counter[tuple[str, str, str]] = Counter()
        self.search = Handle(self.library)

    def replica(self, model: Models) -> Chat:
        return Chat(
            config=ServiceConfig(tenants_dir=self.tenants_dir),
            connect=lambda: self.objects,
            tenants=self.tenants,
            model=model,
            search=self.search,
            count=self.count,
            now=self.clock.now,
        )

    def count(self, outcome: Outcome, tenant: str, policy: str, number: int) -> None:
        self.counted[outcome, tenant, policy] += number

    async def new_session(self, tenant_name: str = "acme") -> str:
        return (await self.sessions.create(tenant_name))["id"]

    async def events(self, asked: Asked, tenant_name: str = "acme", *, after: int = 0) -> list[TurnEvent]:
        """The turn's events, up to its end."""
        return await everything(
            await self.turns.follow(tenant_name, asked.session_id, asked.turn_id, after=after),
        )

    async def answer(self, chat: Chat, asked: Question) -> list[TurnEvent]:
        return await self.events(await chat.begin(asked), asked.tenant)

    async def heard(self, asked: Asked, event_type: str) -> list[TurnEvent]:
        """The turn's events up to the first of that type."""
        heard: list[TurnEvent] = []
        async with asyncio.timeout(WITHIN_S):
            async for event in await self.turns.follow("acme", asked.session_id, asked.turn_id):
                heard.append(event)
                if event["type"] == event_type:
                    return heard
        raise AssertionError(f"no {event_type} in {types_of(heard)}")

    async def ended(self, asked: Asked, tenant_name: str = "acme") -> TurnInfo:
        """The turn, once it has ended."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                turn = await self.turns.get(tenant_name, asked.session_id, asked.turn_id)
                if turn["status"] in FINAL:
                    return turn

    async def history(self, session_id: str, tenant_name: str = "acme") -> list[Message]:
        return (await self.sessions.history(tenant_name, session_id, limit=100, before=None))["messages"]

    async def said(self, session_id: str, tenant_name: str = "acme") -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in await self.history(session_id, tenant_name)]


class CutChat:
    """A chat whose ingress is lost as soon as a turn is begun: what it would keep of it is not kept."""

    def __init__(self, talk: Talk, model: Models) -> None:
        self._objects = talk.objects
        self._chat = talk.replica(model)

    async def begin(self, question: Question) -> Asked:
        asked = await self._chat.begin(question)
        self._objects.failing["KeyValue", "swap"] = [ObjectReset("KeyValue/acme:requests", "its host was lost")]
        return asked


@contextmanager
def talk_at(data_dir: Path, tenants: Mapping[str, TenantConfig] = TENANTS) -> Iterator[Talk]:
    talk = Talk(data_dir, tenants)
    try:
        yield talk
    finally:
        talk.objects.close()


async def everything(events: AsyncIterator[TurnEvent]) -> list[TurnEvent]:
    async with asyncio.timeout(WITHIN_S):
        return [event async for event in events]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await holds():
            await asyncio.sleep(0)
