"""Is a turn one turn over HTTP, however often it is asked for, cut off, taken up again, or stopped?

A scripted server gives the answers, so that each word of them is known.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse, connect_sse

from tests.integration.calls import contents, eventually, new_session, ok, problem, refused_fields, totals, unique
from tests.integration.conftest import TOOLED_KEY, Service
from tests.integration.scripted_model import KEY, ScriptedModel, answer, question

#: Each is cut several times.
STREAMS = 100
AT_ONCE = 20
PIECES = 40
#: For the upstream server to notice, from the moment the stop was asked for.
STOPPED_WITHIN_S = 1.0
#: As the service ends its lines.
EVENT_END = b"\r\n\r\n"
FINAL = {"turn.completed", "turn.cancelled", "turn.incomplete", "error"}


def whole(client: httpx.Client, message: str, **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = ok(client.post("/chat", json={"message": message, "stream": False, **more}))
    return told


def path_of(told: dict[str, Any]) -> str:
    return f"/chat/sessions/{told['session_id']}/turns/{told['turn_id']}"


def events(client: httpx.Client, path: str, **params: Any) -> list[dict[str, Any]]:
    with connect_sse(client, "GET", f"{path}/events", params=params) as source:
        return [{"id": int(one.id), "event": one.event, "data": one.json()} for one in source.iter_sse() if one.data]


def read_event(block: bytes) -> tuple[int, str, dict[str, Any]] | None:
    """None for a comment."""
    fields = dict(line.partition(": ")[::2] for line in block.decode().splitlines())
    return (int(fields["id"]), fields["event"], json.loads(fields["data"])) if "data" in fields else None


class Reader:
    """Reads one answer, and loses its connection again and again, often with a part of an event in its hands."""

    def __init__(self, client: httpx.AsyncClient, tag: str, chance: random.Random) -> None:
        self._client = client
        self._tag = tag
        self._chance = chance
        self.heard: list[tuple[int, str, dict[str, Any]]] = []
        #: How often it was cut, and how often of these in the middle of an event.
        self.cuts = self.torn = 0
        #: Of its requests, in their order.
        self.request_ids: list[str] = []

    async def read(self, body: dict[str, Any]) -> str:
        """Returns the path of the turn."""
        path = await self._some("POST", "/chat", json=body)
        while not self.heard or self.heard[-1][1] not in FINAL:
            last = str(self.heard[-1][0] if self.heard else 0)
            if self._chance.random() < 0.5:
                await self._some("GET", f"{path}/events", headers={"Last-Event-ID": last})
            else:
                await self._some("GET", f"{path}/events", params={"starting_after": last})
        return path

    async def _some(self, method: str, url: str, *, headers: dict[str, str] | None = None, **request: Any) -> str:
        tears = self._chance.random() < 0.5
        # An answer has three events at least: with one at a time, each is cut twice.
        enough = self._chance.randint(0 if tears else 1, 1 if self.cuts < 2 else 3)
        request_id = f"{self._tag}-{len(self.request_ids)}"
        self.request_ids.append(request_id)
        headers = {**(headers or {}), "X-Request-ID": request_id}
        async with self._client.stream(method, url, headers=headers, **request) as response:
            response.raise_for_status()
            path = response.headers["content-location"].removesuffix("/events")
            rest = b""
            async for piece in response.aiter_raw():
                rest += piece
                while enough and EVENT_END in rest:
                    block, _, rest = rest.partition(EVENT_END)
                    event = read_event(block)
                    if event is not None:
                        self.heard.append(event)
                        enough -= 1
                        if event[1] in FINAL:
                            return path
                # Of what follows some bytes came, and no more is read, not even of what is there.
                if not enough and (rest or not tears):
                    break
            self.cuts += 1
            self.torn += bool(rest)
        return path

    @property
    def text(self) -> str:
        return "".join(data["text"] for _, kind, data in self.heard if kind == "text.delta")


def replicas_of(service: Service, request_ids: set[str]) -> dict[str, str]:
    """Which replica answered each request, as their logs say."""
    record = json.loads((service.data_dir / "run" / "run.json").read_text())
    found: dict[str, str] = {}
    for log in Path(record["ray_session_dir"], "logs", "serve").glob("replica_default_Ingress_*.log"):
        found |= dict.fromkeys(request_ids.intersection(log.read_text().split()), log.name)
    return found


@pytest.mark.timeout(300)
async def test_streams_that_are_cut_and_taken_up_again_lose_and_repeat_nothing(service: Service) -> None:
    chance = random.Random(4)
    tags = [unique("cut") for _ in range(STREAMS)]
    room = asyncio.Semaphore(AT_ONCE)
    # A connection each time, and the next replica with it.
    none_kept = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        base_url=service.url, headers=headers, timeout=60, limits=none_kept, verify=False
    ) as client:

        async def one(tag: str) -> tuple[Reader, str]:
            async with room:
                reader = Reader(client, tag, random.Random(chance.random()))
                message = question(tag, pieces=PIECES, pause_s=0.01)
                return reader, await reader.read({"message": message, "retrieve": False})

        read = await asyncio.gather(*[one(tag) for tag in tags])
        for tag, (reader, path) in zip(tags, read, strict=True):
            numbers = [number for number, _, _ in reader.heard]
            assert numbers == list(range(1, len(numbers) + 1))
            kept = ok(await client.get(f"{path.partition('/turns/')[0]}/messages"))["messages"]
            assert [message["role"] for message in kept] == ["user", "assistant"]
            assert reader.text.encode() == kept[1]["content"].encode() == answer(tag, PIECES).encode()
            turn = ok(await client.get(path))
            assert (turn["status"], turn["last_event"]) == ("completed", numbers[-1])
    readers = [reader for reader, _ in read]
    assert min(reader.cuts for reader in readers) >= 2
    assert sum(reader.torn for reader in readers) >= STREAMS
    asked = {request_id for reader in readers for request_id in reader.request_ids}
    # A replica notes a request when it is over for it, which may be a moment later than it is for its client.
    await asyncio.to_thread(eventually, lambda: len(replicas_of(service, asked)) == len(asked))
    answered_by = replicas_of(service, asked)
    # From the one that began it to the one that was asked next.
    moves = Counter((answered_by[one.request_ids[0]], answered_by[one.request_ids[1]]) for one in readers)
    moved = {move: count for move, count in moves.items() if move[0] != move[1]}
    assert len(moved) == 2
    assert min(moved.values()) >= STREAMS // 20


def test_any_number_of_readers_hear_the_same(service: Service, scripted: httpx.Client) -> None:
    tag = unique("many")
    told: dict[str, Any] = {}
    body = {"message": question(tag, pieces=20, pause_s=0.05), "retrieve": False}

    async def all_at_once() -> list[Any]:
        async with service.async_client(KEY) as client:

            async def one() -> list[Any]:
                async with aconnect_sse(client, "GET", f"{path_of(told)}/events") as source:
                    return [(one.id, one.event, one.data) async for one in source.aiter_sse() if one.data]

            return list(await asyncio.gather(*[one() for _ in range(10)]))

    with connect_sse(scripted, "POST", "/chat", json=body) as source:
        stream = source.iter_sse()
        told = next(stream).json()
        heard = asyncio.run(all_at_once())
        rest = [(one.id, one.event, one.data) for one in stream if one.data]
    assert all(one == heard[0] for one in heard)
    assert heard[0][1:] == rest
    assert "".join(json.loads(data).get("text", "") for _, _, data in heard[0]) == answer(tag, 20)


@pytest.mark.parametrize("named", [True, False])
async def test_the_same_request_ten_times_at_once_is_one_turn_and_one_charge(
    service: Service, tooled: httpx.Client, model: ScriptedModel, named: bool
) -> None:
    # Of a tenant of whose tokens nobody else uses any meanwhile.
    tag, charged = unique("same"), totals(tooled)
    body = {"message": question(tag, pieces=5, pause_s=0.02), "retrieve": False, "user_id": tag}
    if named:
        body["session_id"] = new_session(tooled, user_id=tag).rpartition("/")[2]
    async with service.async_client(TOOLED_KEY) as client:
        headers = {"Idempotency-Key": f'"{tag}"'}
        answers = await asyncio.gather(
            *[client.post("/chat", json={**body, "stream": False}, headers=headers) for _ in range(8)],
            *[client.post("/chat", json={**body, "stream": False, "request_id": tag}) for _ in range(2)],
        )
    told = [ok(one) for one in answers]
    assert all(one == told[0] for one in told)
    assert told[0]["text"] == answer(tag, 5)
    assert [one.headers.get("idempotent-replayed") for one in answers].count("true") == 9
    assert model.asked.count(tag) == 1
    session = f"/chat/sessions/{told[0]['session_id']}"
    assert contents(tooled, session) == [body["message"], answer(tag, 5)]
    assert [turn["id"] for turn in ok(tooled.get(f"{session}/turns"))["turns"]] == [told[0]["turn_id"]]
    assert len(ok(tooled.get("/chat/sessions", params={"user_id": tag}))["sessions"]) == 1
    assert told[0]["usage"] == {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12, "estimated": False}
    rows = ok(
        tooled.post(
            "/admin/objects/ChatSession/query",
            params={"name": told[0]["session_id"]},
            json={"sql": "SELECT input_tokens, output_tokens, (SELECT count(*) FROM turn) FROM session"},
        )
    )["rows"]
    assert rows == [[7, 5, 1]]
    eventually(lambda: totals(tooled) != charged)
    assert totals(tooled) == {
        "turns": charged["turns"] + 1,
        "input_tokens": charged["input_tokens"] + 7,
        "output_tokens": charged["output_tokens"] + 5,
        "total_tokens": charged["total_tokens"] + 12,
    }
    changed = tooled.post("/chat", json={**body, "message": "tag=x pieces=1"}, headers=headers)
    assert list(refused_fields(changed)) == ["Idempotency-Key"]


def test_a_stopped_answer_is_stopped_where_it_is_made_and_kept_as_far_as_it_is(
    scripted: httpx.Client, model: ScriptedModel
) -> None:
    tag = unique("stop")
    body = {"message": question(tag, pieces=10_000, pause_s=0.02), "retrieve": False}
    with connect_sse(scripted, "POST", "/chat", json=body) as source:
        stream = source.iter_sse()
        told = next(stream).json()
        next(one for one in stream if one.event == "text.delta")
        asked_s = time.monotonic()
        stopped = ok(scripted.post(f"{path_of(told)}/cancel"))
        last = [one for one in stream if one.data][-1]
    eventually(lambda: tag in model.gone, within_s=5)
    assert model.gone[tag] - asked_s < STOPPED_WITHIN_S
    assert (stopped["status"], last.event) == ("cancelled", "turn.cancelled")
    assert ok(scripted.post(f"{path_of(told)}/cancel")) == stopped
    _, kept = contents(scripted, f"/chat/sessions/{told['session_id']}")
    assert kept
    assert answer(tag, 1000).startswith(kept)
    assert stopped["usage"]["estimated"]
    assert stopped["usage"]["output_tokens"] > 0


def test_an_answer_is_stopped_before_its_first_word_as_well(scripted: httpx.Client, model: ScriptedModel) -> None:
    tag = unique("early")
    body = {"message": question(tag, pieces=1, first_s=60), "retrieve": False}
    with connect_sse(scripted, "POST", "/chat", json=body) as source:
        told = next(source.iter_sse()).json()
        eventually(lambda: tag in model.asked)
        asked_s = time.monotonic()
        assert ok(scripted.post(f"{path_of(told)}/cancel"))["status"] == "cancelled"
    eventually(lambda: tag in model.gone, within_s=5)
    assert model.gone[tag] - asked_s < STOPPED_WITHIN_S
    assert contents(scripted, f"/chat/sessions/{told['session_id']}") == [body["message"]]


def test_a_message_during_an_answer_waits_is_refused_or_ends_it(scripted: httpx.Client, model: ScriptedModel) -> None:
    tags = [unique(name) for name in ("first", "refused", "second", "third", "fourth")]
    long, refused, second, third, fourth = [question(tag, pieces=30, pause_s=0.05) for tag in tags]
    with connect_sse(scripted, "POST", "/chat", json={"message": long, "retrieve": False}) as source:
        stream = source.iter_sse()
        told = next(stream).json()
        there = {"session_id": told["session_id"], "retrieve": False}
        problem(scripted.post("/chat", json={"message": refused, "on_conflict": "reject", **there}), 409)
        with connect_sse(scripted, "POST", "/chat", json={"message": second, **there}) as waiting:
            queued = next(waiting.iter_sse())
            assert (queued.event, queued.json()["position"]) == ("turn.queued", 1)
        next(one for one in stream if one.event == "text.delta")
        with connect_sse(
            scripted, "POST", "/chat", json={"message": third, "on_conflict": "interrupt", **there}
        ) as interrupting:
            following = interrupting.iter_sse()
            next(one for one in following if one.event == "text.delta")
            rolled = whole(scripted, fourth, on_conflict="rollback", **there)
        assert [one for one in stream if one.data][-1].event == "turn.cancelled"
    assert rolled["text"] == answer(tags[4], 30)
    said = contents(scripted, f"/chat/sessions/{told['session_id']}")
    assert [said[0], *said[2:]] == [long, fourth, rolled["text"]]
    assert answer(tags[0], 30).startswith(said[1])
    statuses = [turn["status"] for turn in ok(scripted.get(path_of(told).rpartition("/")[0]))["turns"]]
    assert statuses == ["completed", "cancelled", "cancelled", "cancelled"]
    assert (tags[1] in model.asked, tags[2] in model.asked) == (False, False)


def test_a_message_is_answered_again_or_replaced(scripted: httpx.Client, model: ScriptedModel) -> None:
    tag, other = unique("again"), unique("instead")
    first = whole(scripted, question(tag, pieces=3), retrieve=False)
    there = {"session_id": first["session_id"], "retrieve": False, "stream": False}
    ok(scripted.post("/chat", json={"regenerate": True, **there}))
    assert model.asked.count(tag) == 2
    session = f"/chat/sessions/{first['session_id']}"
    assert contents(scripted, session) == [question(tag, pieces=3), answer(tag, 3)]
    asked = ok(scripted.get(f"{session}/messages"))["messages"][0]["id"]
    replaced = {"message": question(other, pieces=2), "replace": asked, **there}
    ok(scripted.post("/chat", json=replaced))
    assert contents(scripted, session) == [question(other, pieces=2), answer(other, 2)]


def test_a_turn_that_is_over_can_be_read_again(scripted: httpx.Client) -> None:
    tag = unique("over")
    told = whole(scripted, question(tag, pieces=4), retrieve=False)
    turn = ok(scripted.get(path_of(told)))
    every = events(scripted, path_of(told))
    assert [one["id"] for one in every] == list(range(1, turn["last_event"] + 1))
    assert events(scripted, path_of(told), starting_after=2) == every[2:]
    assert events(scripted, path_of(told), starting_after=turn["last_event"]) == []
    ok(scripted.post(f"{path_of(told)}/cancel"))
    assert ok(scripted.get(path_of(told))) == turn


def test_turns_that_are_not_there_or_not_ones_own_are_not_found(scripted: httpx.Client, demo: httpx.Client) -> None:
    told = whole(scripted, question(unique("mine"), pieces=1), retrieve=False)
    path = path_of(told)
    for client, where in [(demo, path), (scripted, f"{path[:-4]}0000"), (scripted, f"{path}x")]:
        problem(client.get(where), 404)
        problem(client.get(f"{where}/events"), 404)
        problem(client.post(f"{where}/cancel"), 404)
    problem(demo.get(path.rpartition("/")[0]), 404)
    for last in ("x", "-1", "9" * 17):
        problem(scripted.get(f"{path}/events", headers={"Last-Event-ID": last}), 422)
        problem(scripted.get(f"{path}/events", params={"starting_after": last}), 422)
