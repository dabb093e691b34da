"""Does each turn that is offered come to one runner, in time and in order?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import LocalBackend, TurnQueue, turn_queue
from actors.runtime.custody import HOLD_WAIT_S
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from tests.unit.objects_fixtures import Hibernating


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, [TurnQueue], settings=HostSettings(slots=4))
    yield backend
    backend.close()


@pytest.fixture
def queue(objects: LocalBackend) -> Stub[TurnQueue]:
    return objects.namespace(TurnQueue).get(turn_queue.QUEUE_TENANT, turn_queue.QUEUE_NAME)


async def _taken(queue: Stub[TurnQueue]) -> list[str]:
    taken = []
    while (orphan := await queue.take(0.0)) is not None:
        taken.append(orphan["turn_id"])
    return taken


async def test_what_is_offered_is_taken_once_in_order(queue: Stub[TurnQueue]) -> None:
    for turn_id in ("t2", "t1", "t3"):
        await queue.offer("acme", "s1", turn_id)
    assert await queue.take() == {"tenant": "acme", "session_id": "s1", "turn_id": "t2"}
    assert await _taken(queue) == ["t1", "t3"]


async def test_what_waits_already_waits_on(queue: Stub[TurnQueue]) -> None:
    for turn_id in ("t1", "t2", "t1"):
        await queue.offer("acme", "s1", turn_id)
    await queue.offer("globex", "s1", "t1")
    assert await _taken(queue) == ["t1", "t2", "t1"]


async def test_what_was_taken_can_be_offered_again(queue: Stub[TurnQueue]) -> None:
    await queue.offer("acme", "s1", "t1")
    assert await _taken(queue) == ["t1"]
    await queue.offer("acme", "s1", "t1")
    assert await _taken(queue) == ["t1"]


@pytest.mark.parametrize("wait_s", [0.0, -1.0, 0.02])
async def test_an_empty_queue_has_nothing_for_as_long_as_it_is_waited_for(
    queue: Stub[TurnQueue], wait_s: float
) -> None:
    assert await queue.take(wait_s) is None


async def test_those_who_wait_get_what_comes_one_each(queue: Stub[TurnQueue]) -> None:
    takers = [asyncio.ensure_future(queue.take()) for _ in range(4)]
    while await queue.take(0.0) is not None:
        pass  # by now they wait
    await asyncio.gather(*(queue.offer("acme", "s1", f"t{number}") for number in range(3)))
    done, waiting = await asyncio.wait(takers, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 3:
        more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    found = [task.result() for task in done]
    assert sorted(orphan["turn_id"] for orphan in found if orphan is not None) == ["t0", "t1", "t2"]
    await queue.offer("acme", "s1", "last")
    (last,) = waiting
    assert (await last)["turn_id"] == "last"


async def test_a_full_queue_takes_no_more_and_loses_nothing(
    queue: Stub[TurnQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_queue, "WAITING_MAX", 2)
    for turn_id in ("t1", "t2", "t3", "t1"):
        await queue.offer("acme", "s1", turn_id)
    assert await _taken(queue) == ["t1", "t2"]


async def test_the_queue_outlives_its_host(tmp_path: Path) -> None:
    for number in range(2):
        backend = LocalBackend(tmp_path, [TurnQueue], settings=HostSettings(slots=4))
        queue = backend.namespace(TurnQueue).get(turn_queue.QUEUE_TENANT, turn_queue.QUEUE_NAME)
        if number == 0:
            await queue.offer("acme", "s1", "t1")
        else:
            assert await _taken(queue) == ["t1"]
        backend.close()


def test_a_runner_that_waits_lets_the_queue_be_looked_after() -> None:
    assert turn_queue.TAKE_WAIT_MAX_S < HOLD_WAIT_S
