"""Do answers end, and is nothing of them lost or doubled, when what makes them is killed with `kill -9`?

Each test kills one part while many turns run: some have shown a part of their answer, others nothing yet. What the
clients see counts, and what is in the history afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import yaml
from httpx_sse import aconnect_sse

from deployments.free_port import free_port
from tests.integration.calls import eventually, ok, unique
from tests.integration.conftest import Service, configured
from tests.integration.scripted_model import KEY, MODEL, ScriptedModel, answer, piece, question, scripted_model

#: So many answers of the embedded model are made at once. They are long enough not to be over when all have begun, and
#: the others, which wait for them, short enough to be over in time.
EMBEDDED_AT_ONCE = 4
LONG_TOKENS, SHORT_TOKENS = 100, 20
DEMO_KEY = "sk-demo"
#: The start of the service, and a test, on a machine that may do other things as well.
TIMEOUT_S = 400
TURNS = 20
PIECES = 60
#: From the kill on, for all of them.
ENDED_WITHIN_S = 30.0
#: For those that have shown a part of their answer to hear what becomes of it.
NOTICED_WITHIN_S = 15.0
FINAL = ("completed", "incomplete", "failed", "cancelled")
#: The key of a tenant whose model goes on with what was told of an answer.
LASTING_KEY = "sk-lasting"
#: The key of a tenant that has two answers a month, one at a time.
THRIFTY_KEY = "sk-thrifty"
#: How often a client tries again that finds nobody to answer.
PAUSE_S = 0.25


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with scripted_model() as model:
        yield model


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model: ScriptedModel) -> Iterator[Service]:
    config = configured(tmp_path_factory.mktemp("config"), model)
    tenants = config.parent / "tenants"
    lasting = yaml.safe_load((tenants / f"{MODEL}.yaml").read_text())
    lasting |= {"tenant": "lasting", "keys": [lasting["keys"][0] | {"plain": LASTING_KEY}]}
    lasting["model"]["continues"] = True
    (tenants / "lasting.yaml").write_text(yaml.safe_dump(lasting))
    thrifty = lasting | {"tenant": "thrifty", "keys": [lasting["keys"][0] | {"plain": THRIFTY_KEY}]}
    # Of the answer that is lost nobody knows what it used before its turn is counted: there has to be enough for two.
    thrifty |= {
        "concurrency": {"per_client": 1},
        "model": lasting["model"] | {"max_tokens": PIECES, "continues": False},
    }
    thrifty["budgets"] = [{"name": "monthly", "per": "month", "output_tokens": 2 * PIECES}]
    (tenants / "thrifty.yaml").write_text(yaml.safe_dump(thrifty))
    running = Service(tmp_path_factory.mktemp("turns"), free_port(), config)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@dataclass(kw_only=True, slots=True)
class Asker:
    """One client with one question, that follows its answer whatever happens to the connection."""

    tag: str
    key: str
    first_s: float = 0.0
    max_tokens: int | None = None
    #: It asks when these have shown something.
    follows: Sequence[Asker] = ()
    heard: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    ended_s: float = 0.0
    #: When it first heard that the one who answered was lost.
    noticed_s: float | None = None
    #: Of the turn, as soon as its stream has begun.
    path: str = ""

    @property
    def message(self) -> str:
        return question(self.tag, pieces=PIECES, pause_s=0.1, first_s=self.first_s)

    @property
    def text(self) -> str:
        return "".join(data["text"] for _, kind, data in self.heard if kind == "text.delta")

    @property
    def goes_on(self) -> bool:
        """It has heard that the answer, of which it has a part, goes on from there."""
        return any(kind == "turn.retrying" and data["continues"] for _, kind, data in self.heard)

    async def run(self, client: httpx.AsyncClient) -> None:
        body = {"message": self.message, "retrieve": False, "request_id": self.tag, "max_tokens": self.max_tokens}
        while not all(asker.text for asker in self.follows):
            await asyncio.sleep(0.02)
        while not self.heard:
            await self._read(client, "POST", "/chat", json=body)
        while self.heard[-1][1] not in ("turn.completed", "turn.incomplete", "turn.cancelled", "error"):
            await self._read(client, "GET", f"{self.path}/events", headers={"Last-Event-ID": str(self.heard[-1][0])})
        self.ended_s = time.monotonic()

    async def _read(self, client: httpx.AsyncClient, method: str, url: str, **request: Any) -> None:
        request["headers"] = {"Authorization": f"Bearer {self.key}", **request.get("headers", {})}
        try:
            async with aconnect_sse(client, method, url, **request) as source:
                if source.response.status_code in (409, 500, 502, 503, 504):
                    await asyncio.sleep(PAUSE_S)
                    return
                source.response.raise_for_status()
                if not self.path:
                    self.path = source.response.headers["content-location"].removesuffix("/events")
                async for event in source.aiter_sse():
                    if event.data:
                        self.heard.append((int(event.id), event.event, event.json()))
                        if event.event in ("turn.retrying", "turn.incomplete") and self.noticed_s is None:
                            self.noticed_s = time.monotonic()
        except httpx.TransportError:
            await asyncio.sleep(PAUSE_S)


class EmbeddedAsker(Asker):
    """The same of the embedded model."""

    @property
    def message(self) -> str:
        return f"Tell me a story of {self.tag}."


async def run_and_kill(service: Service, model: ScriptedModel, name: str) -> tuple[list[Asker], float]:
    """Half of the turns have shown something when the kill comes, and the others have asked their model.

    The models of half of each can go on from there.
    """
    askers = [
        Asker(tag=unique("t"), key=LASTING_KEY if number % 4 < 2 else KEY, first_s=0.0 if number % 2 else 4.0)
        for number in range(TURNS)
    ]

    def are_under_way() -> bool:
        return all(asker.tag in model.asked and (asker.first_s or asker.text) for asker in askers)

    return askers, await kill_when(are_under_way, service, askers, name)


async def kill_when(are_under_way: Callable[[], bool], service: Service, askers: Sequence[Asker], name: str) -> float:
    """When they were killed, once all is over."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits, verify=False) as client:
        running = [asyncio.ensure_future(asker.run(client)) for asker in askers]
        async with asyncio.timeout(60):
            while not are_under_way():
                await asyncio.sleep(0.05)
        assert await asyncio.to_thread(service.kill, name) > 0
        killed_s = time.monotonic()
        await asyncio.gather(*running)
    return killed_s


def compare(service: Service, askers: Sequence[Asker], killed_s: float) -> dict[str, int]:
    """Every turn has ended in time and once, and the history holds what was heard. Returns how they ended."""
    ways: dict[str, int] = {}
    for asker in askers:
        with service.client(asker.key) as client:
            assert asker.ended_s - killed_s < ENDED_WITHIN_S
            numbers = [number for number, _, _ in asker.heard]
            assert numbers == list(range(1, len(numbers) + 1))
            turn = ok(client.get(asker.path))
            assert turn["status"] in FINAL
            ways[turn["status"]] = ways.get(turn["status"], 0) + 1
            session = asker.path.partition("/turns/")[0]
            assert [one["id"] for one in ok(client.get(f"{session}/turns"))["turns"]] == [turn["id"]]
            kept = [(one["role"], one["content"]) for one in ok(client.get(f"{session}/messages"))["messages"]]
            assert kept[0] == ("user", asker.message)
            assert kept[1:] == ([("assistant", asker.text)] if asker.text else [])
            assert ok(client.get(f"{session}/usage"))["output_tokens"] == turn["usage"]["output_tokens"]
            if turn["status"] != "completed":
                assert turn["error"]["retryable"]
            if not isinstance(asker, EmbeddedAsker):
                compare_with_script(asker, turn)
    return ways


def compare_with_script(asker: Asker, turn: dict[str, Any]) -> None:
    """What the scripted model said is known."""
    assert answer(asker.tag, PIECES).startswith(asker.text)
    # What is counted is what was shown, at least.
    assert turn["usage"]["output_tokens"] >= asker.text.count("\n")
    if turn["status"] == "completed":
        assert asker.text == answer(asker.tag, PIECES)


def can_chat(service: Service) -> bool:
    with service.client(KEY) as client:
        tag = unique("after")
        answered = client.post("/chat", json={"message": question(tag, pieces=1), "retrieve": False, "stream": False})
        return answered.status_code == 200 and answered.json()["text"] == piece(tag, 0)


@pytest.mark.timeout(TIMEOUT_S)
async def test_turns_end_as_they_should_when_their_replica_is_killed(service: Service, model: ScriptedModel) -> None:
    askers, killed_s = await run_and_kill(service, model, "ray::ServeReplica:default:Chat")
    ways = await asyncio.to_thread(compare, service, askers, killed_s)
    # Who had heard a part keeps it, and gets the rest where the model can go on; who had heard nothing is answered.
    assert ways == {"incomplete": TURNS // 4, "completed": TURNS - TURNS // 4}
    noticed_s = [asker.noticed_s for asker in askers if not asker.first_s]
    assert all(at_s is not None and at_s - killed_s < NOTICED_WITHIN_S for at_s in noticed_s)
    await asyncio.to_thread(eventually, lambda: can_chat(service))


@pytest.mark.timeout(TIMEOUT_S)
async def test_turns_go_on_when_the_embedded_model_is_killed(service: Service) -> None:
    first = [EmbeddedAsker(tag=unique("e"), key=DEMO_KEY, max_tokens=LONG_TOKENS) for _ in range(EMBEDDED_AT_ONCE)]
    waiting = [
        EmbeddedAsker(tag=unique("e"), key=DEMO_KEY, max_tokens=SHORT_TOKENS, follows=first)
        for _ in range(TURNS - EMBEDDED_AT_ONCE)
    ]
    askers = [*first, *waiting]

    def are_under_way() -> bool:
        return all(asker.heard for asker in askers)

    killed_s = await kill_when(are_under_way, service, askers, "ray::ServeReplica:default:Model")
    ways = await asyncio.to_thread(compare, service, askers, killed_s)
    assert ways == {"completed": TURNS}
    assert min(asker.ended_s for asker in askers) > killed_s
    assert all(asker.goes_on for asker in first)


@pytest.mark.timeout(TIMEOUT_S)
async def test_what_a_killed_replica_was_promised_comes_back(service: Service, model: ScriptedModel) -> None:
    def left() -> tuple[int, int, int]:
        """Turns in flight, tokens used and promised."""
        with service.client(THRIFTY_KEY) as client:
            shown = ok(client.get("/ratelimit/usage"))
        (budget,) = shown["budgets"]
        tokens = budget["output_tokens"]
        return shown["turns_in_flight"]["client"], tokens["used"], tokens["promised"]

    asker = Asker(tag=unique("promised"), key=THRIFTY_KEY, first_s=4.0)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, verify=False) as client:
        asking = asyncio.ensure_future(asker.run(client))
        await asyncio.to_thread(eventually, lambda: asker.tag in model.asked)
        assert await asyncio.to_thread(left) == (1, 0, PIECES)
        denied = await client.post(
            "/chat", json={"message": "Why?", "retrieve": False}, headers={"Authorization": f"Bearer {THRIFTY_KEY}"}
        )
        assert denied.json()["violated-policies"] == ["turns-per-client"]
        assert await asyncio.to_thread(service.kill, "ray::ServeReplica:default:Chat") > 0
        # Another runs it: it is neither denied, nor one more.
        await asking
    assert asker.text == answer(asker.tag, PIECES)
    await asyncio.to_thread(eventually, lambda: left() == (0, PIECES, 0))
    await asyncio.to_thread(eventually, lambda: can_chat(service))


@pytest.mark.timeout(TIMEOUT_S)
async def test_turns_go_on_when_the_hosts_of_their_sessions_are_killed(service: Service, model: ScriptedModel) -> None:
    askers, killed_s = await run_and_kill(service, model, "ray::ObjectHost")
    ways = await asyncio.to_thread(compare, service, askers, killed_s)
    assert ways == {"completed": TURNS}


@pytest.mark.timeout(TIMEOUT_S)
async def test_an_answer_is_found_again_after_every_process_was_killed(service: Service, model: ScriptedModel) -> None:
    tags = [unique("all") for _ in range(2)]
    done, cut = question(tags[0], pieces=3), question(tags[1], pieces=PIECES, pause_s=0.1)

    async def ask(message: str, *, stream: bool) -> httpx.Response | None:
        async with service.async_client(KEY) as client:
            body = {"message": message, "retrieve": False, "stream": stream, "request_id": f"key-{message[4:20]}"}
            try:
                return await client.post("/chat", json=body)
            except httpx.TransportError:
                return None

    first = await ask(done, stream=False)
    assert first is not None
    asking = asyncio.ensure_future(ask(cut, stream=True))
    async with asyncio.timeout(60):
        while tags[1] not in model.asked:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)  # a part of it is written by then
    await asyncio.to_thread(service.kill)
    await asking
    await asyncio.to_thread(service.start)
    again = await ask(done, stream=False)
    assert again is not None
    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    joined = await ask(cut, stream=False)
    assert joined is not None
    assert joined.headers["idempotent-replayed"] == "true"
    told = ok(joined)
    assert told["status"] == "incomplete"
    assert told["text"]
    assert answer(tags[1], PIECES).startswith(told["text"])
    assert (model.asked.count(tags[0]), model.asked.count(tags[1])) == (1, 1)
