"""Do many clients that append to one session at once lose, repeat or reorder anything?"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import httpx
import pytest

from tests.integration.calls import eventually, new_session, ok
from tests.integration.conftest import Service

CLIENTS = 50
MESSAGES_EACH = 4


class Acknowledged(NamedTuple):
    """One message: the number it got, and when its client sent it and heard of it."""

    number: int
    content: str
    sent_s: float
    heard_s: float


async def append_some(service: Service, key: str, session: str, client_number: int) -> list[Acknowledged]:
    """One client with a connection of its own."""
    done = []
    async with service.async_client(key) as client:
        for message_number in range(MESSAGES_EACH):
            content = f"client {client_number} message {message_number}"
            sent_s = time.monotonic()
            answer = await client.post(f"{session}/messages", json={"role": "user", "content": content})
            done.append(Acknowledged(ok(answer, 201)["id"], content, sent_s, time.monotonic()))
    return done


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
async def test_50_clients_at_once_append_each_message_once_in_the_order_acknowledged(
    service: Service, key: str
) -> None:
    with service.client(key) as reader:
        session = new_session(reader)
        appended = await asyncio.gather(
            *[append_some(service, key, session, client_number) for client_number in range(CLIENTS)]
        )
        history = ok(reader.get(f"{session}/messages", params={"limit": 1000}))["messages"]
        assert ok(reader.get(session))["message_count"] == CLIENTS * MESSAGES_EACH

    acknowledged = sorted(message for messages in appended for message in messages)
    assert [message.number for message in acknowledged] == list(range(1, CLIENTS * MESSAGES_EACH + 1))
    assert [(kept["id"], kept["content"]) for kept in history] == [(one.number, one.content) for one in acknowledged]
    # What was sent after another was acknowledged has the higher number.
    latest_sent_s = 0.0
    for message in acknowledged:
        assert message.heard_s > latest_sent_s
        latest_sent_s = max(latest_sent_s, message.sent_s)


async def test_readers_see_a_growing_history_while_others_append(service: Service) -> None:
    with service.client() as client:
        session = new_session(client)
    done = asyncio.Event()

    async def read() -> None:
        seen = 0
        async with service.async_client() as reader:
            while not done.is_set():
                page = ok(await reader.get(f"{session}/messages", params={"limit": 1000}))["messages"]
                assert [message["id"] for message in page] == list(range(1, len(page) + 1))
                assert len(page) >= seen
                seen = len(page)

    reading = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.gather(*[append_some(service, "sk-demo", session, number) for number in range(10)])
    done.set()
    await asyncio.gather(*reading)


async def test_a_session_deleted_while_others_append_is_gone(service: Service) -> None:
    with service.client() as client:
        session = new_session(client)

    async def append(writer: httpx.AsyncClient) -> list[int]:
        body = {"role": "user", "content": "x"}
        return [(await writer.post(f"{session}/messages", json=body)).status_code for _ in range(10)]

    async with service.async_client() as writer:
        appending = [asyncio.create_task(append(writer)) for _ in range(5)]
        deleted = await writer.delete(session)
        statuses = await asyncio.gather(*appending)
        assert deleted.status_code == 204
        for each in statuses:
            assert each == sorted(each), "appended after it was gone"
            assert set(each) <= {201, 404}
        assert (await writer.get(session)).status_code == 404
    # Whoever asked for it since had an empty object opened, which is forgotten when it has been idle.
    eventually(lambda: not service.files_of(session.rpartition("/")[2]))
