"""What does a caller learn of a call whose host ended under way?"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from actors.runtime.backend_ray.door import Door
from actors.runtime.backend_ray.link import ActorLink, given
from actors.runtime.call import RETURNED, Call, HostLost, HostRetired, Reply


class _Method:
    async def remote(self, *_: Any) -> Any:
        raise ActorDiedError


class _Identity:
    def hex(self) -> str:
        return "a1"


class DeadHost:
    """The handle of an actor that was retired, and ended."""

    batch = wait = door = _Method()
    _actor_id = _Identity()


@pytest.fixture
def link(tmp_path: Path) -> ActorLink:
    async def was_retired(actor_id: str) -> bool:
        return actor_id == "a1"

    handle: Any = DeadHost()
    return ActorLink("solo", tmp_path / "solo.door", given(handle), was_retired)


async def test_a_call_that_a_retired_host_never_took_may_be_sent_elsewhere(link: ActorLink) -> None:
    with pytest.raises(HostRetired):
        await link.batch([])


async def test_a_call_that_ran_and_whose_reply_went_with_its_retired_host_counts_as_lost(link: ActorLink) -> None:
    with pytest.raises(HostLost):
        await link.wait("ticket")


class LivingHost:
    """The handle of an actor that lives, with what it answers by Ray; the test opens its door."""

    _actor_id = _Identity()

    def __init__(self) -> None:
        self.has_door = True
        self.by_ray: list[list[Call]] = []
        self.door: Any = _Answers(lambda: self.has_door)
        self.batch = _Answers(self._batch)

    def _batch(self, calls: list[Call]) -> list[Reply]:
        self.by_ray.append(calls)
        return [(RETURNED, b"by Ray")] * len(calls)


class _Answers:
    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    async def remote(self, *asked: Any) -> Any:
        return self._answer(*asked)


CALL: Call = ("Notebook", "acme", "n", "add", b"", "", None)


@pytest.fixture
def host() -> LivingHost:
    return LivingHost()


@pytest.fixture
def retired() -> set[str]:
    return set()


@pytest.fixture
def living(host: LivingHost, tmp_path: Path, retired: set[str]) -> ActorLink:
    async def was_retired(actor_id: str) -> bool:
        return actor_id in retired

    handle: Any = host
    return ActorLink("host-0", tmp_path / "host.door", given(handle), was_retired)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """A door at which somebody stands who may do anything."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "host.door"))
        listening.listen()
        listening.setblocking(False)
        yield listening


async def test_calls_go_through_the_door_where_there_is_one(
    living: ActorLink, host: LivingHost, tmp_path: Path
) -> None:
    door = Door("host-0", lambda calls: [(RETURNED, b"at the door")] * len(calls), _never)
    assert door.open(tmp_path / "host.door")

    replies = await living.batch([CALL, CALL])

    assert replies == [(RETURNED, b"at the door")] * 2
    assert not host.by_ray
    door.close()


async def test_batches_that_find_the_door_together_pass_it_in_their_order(
    living: ActorLink, host: LivingHost, tmp_path: Path
) -> None:
    passed: list[list[Call]] = []

    def answer(calls: list[Call]) -> list[Reply]:
        passed.append(calls)
        return [(RETURNED, b"")] * len(calls)

    is_told = asyncio.Event()
    waits = [is_told.wait(), asyncio.sleep(0)]

    class SlowAtFirst:
        async def remote(self) -> bool:
            await waits.pop(0)
            return True

    host.door = SlowAtFirst()
    door = Door("host-0", answer, _never)
    door.open(tmp_path / "host.door")
    batches = [asyncio.create_task(living.batch([CALL] * number)) for number in (1, 2)]
    for _ in range(10):
        await asyncio.sleep(0)
    is_told.set()
    await asyncio.gather(*batches)
    assert [len(calls) for calls in passed] == [1, 2]
    for wait in waits:
        await wait
    door.close()


@pytest.mark.parametrize("has_door", [False, True])
async def test_calls_go_by_ray_where_there_is_no_way_to_a_door(
    living: ActorLink, host: LivingHost, has_door: bool
) -> None:
    host.has_door = has_door  # on another machine, perhaps

    assert await living.batch([CALL]) == [(RETURNED, b"by Ray")]


async def test_a_call_whose_host_ended_counts_as_lost_and_the_next_finds_its_successor(
    living: ActorLink, tmp_path: Path, listening: socket.socket
) -> None:
    calling = asyncio.ensure_future(living.batch([CALL]))
    connection, _ = await asyncio.get_running_loop().sock_accept(listening)
    connection.close()
    with pytest.raises(HostLost):
        await calling

    door = Door("host-0", lambda calls: [(RETURNED, b"back")] * len(calls), _never)
    door.open(tmp_path / "host.door")
    assert await living.batch([CALL]) == [(RETURNED, b"back")]
    door.close()


async def test_a_call_at_the_door_of_a_host_that_had_retired_may_be_sent_elsewhere(
    living: ActorLink, retired: set[str], listening: socket.socket
) -> None:
    calling = asyncio.ensure_future(living.batch([CALL]))
    connection, _ = await asyncio.get_running_loop().sock_accept(listening)
    retired.add("a1")
    connection.close()

    with pytest.raises(HostRetired):
        await calling


async def test_batches_that_look_for_the_door_at_once_are_all_answered(living: ActorLink, tmp_path: Path) -> None:
    door = Door("host-0", lambda calls: [(RETURNED, b"at the door")] * len(calls), _never)
    door.open(tmp_path / "host.door")

    answers = await asyncio.gather(*[living.batch([CALL]) for _ in range(5)])

    assert answers == [[(RETURNED, b"at the door")]] * 5
    door.close()


async def _never(ticket: str) -> Reply:
    raise AssertionError(ticket)
