"""Which way does a question take: by a door of this machine, or by Serve?"""

from __future__ import annotations

import asyncio
import os
import platform
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.call import HostLost
from actors.runtime.clock import ManualClock
from deployments.chat_door import ChatDoor
from deployments.chat_way import LOOK_EVERY_S, ChatWay
from deployments.errors import ModelUnavailable
from deployments.question import Asked, Question
from tests.conformance.support import ticks
from tests.unit.handles import Handle

QUESTION = Question(tenant="acme", message="Why?")
AT_ONCE_MAX = 3


@dataclass
class Replica:
    """Begins turns that are called as it is, with a door or without."""

    name: str
    folder: Path
    at_the_door: ChatDoor = field(init=False)
    by_serve: int = 0
    looked_for: int = 0
    has_door: bool = True
    holds: asyncio.Event | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.at_the_door = ChatDoor(self.folder / self.name, self._begin, AT_ONCE_MAX)

    async def begin(self, question: Question) -> Asked:
        self.by_serve += 1
        return await self._begin(question)

    async def door(self) -> str | None:
        self.looked_for += 1
        return str(self.at_the_door.open()) if self.has_door else None

    async def _begin(self, question: Question) -> Asked:
        if self.holds is not None:
            await self.holds.wait()
        if self.error is not None:
            raise self.error
        return Asked(session_id="s1", turn_id=self.name, joined=False)


class Chosen:
    """As Serve: whichever replica the test says."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    async def begin(self, question: Question) -> Asked:
        return await self.replica.begin(question)

    async def door(self) -> str | None:
        return await self.replica.door()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    replica = Replica("one", tmp_path)
    yield replica
    replica.at_the_door.close()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Replica]:
    other = Replica("other", tmp_path)
    yield other
    other.at_the_door.close()


@pytest.fixture
def chosen(replica: Replica) -> Chosen:
    return Chosen(replica)


@pytest.fixture
def way(chosen: Chosen, clock: ManualClock) -> ChatWay:
    handle: Any = Handle(chosen)
    return ChatWay(handle, clock.monotonic)


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


async def known(way: ChatWay, replica: Replica) -> None:
    """Returns when the next question may go by its door."""
    looked = replica.looked_for
    await way.begin(QUESTION)
    await until(lambda: replica.looked_for > looked)
    await ticks()


async def test_the_first_question_goes_by_serve_and_the_next_ones_by_the_door(way: ChatWay, replica: Replica) -> None:
    await known(way, replica)
    assert replica.by_serve == 1
    assert (await way.begin(QUESTION)).turn_id == "one"
    assert (replica.by_serve, replica.looked_for) == (1, 1)


async def test_where_there_is_no_door_all_go_by_serve_and_one_looks_again_later(
    way: ChatWay, replica: Replica, clock: ManualClock
) -> None:
    replica.has_door = False
    await known(way, replica)
    await way.begin(QUESTION)
    assert (replica.by_serve, replica.looked_for) == (2, 1)
    replica.has_door = True
    clock.advance(LOOK_EVERY_S)
    await known(way, replica)
    await way.begin(QUESTION)
    assert (replica.by_serve, replica.looked_for) == (3, 2)


async def test_replicas_that_are_met_later_get_questions_in_their_turn(
    way: ChatWay, replica: Replica, other: Replica, chosen: Chosen, clock: ManualClock
) -> None:
    await known(way, replica)
    chosen.replica = other
    clock.advance(LOOK_EVERY_S)
    await known(way, other)
    assert sorted([(await way.begin(QUESTION)).turn_id for _ in range(4)]) == ["one", "one", "other", "other"]
    assert other.by_serve == 0


async def test_a_replica_that_is_stopping_begins_no_question_but_ends_those_it_has(
    way: ChatWay, replica: Replica, other: Replica, chosen: Chosen
) -> None:
    await known(way, replica)
    replica.holds = asyncio.Event()
    under_way = asyncio.ensure_future(way.begin(QUESTION))
    await ticks()
    replica.at_the_door.close()
    chosen.replica = other
    assert (await way.begin(QUESTION)).turn_id == "other"
    replica.holds.set()
    assert (await under_way).turn_id == "one"
    assert replica.at_the_door.open() is None


async def test_what_a_replica_raises_arrives_as_it_is(way: ChatWay, replica: Replica) -> None:
    await known(way, replica)
    replica.error = ModelUnavailable("busy", 3.0)
    with pytest.raises(ModelUnavailable) as raised:
        await way.begin(QUESTION)
    assert raised.value.retry_after_s == 3.0


async def test_more_questions_at_once_than_a_replica_takes_are_refused(way: ChatWay, replica: Replica) -> None:
    await known(way, replica)
    replica.holds = asyncio.Event()
    taken = [asyncio.ensure_future(way.begin(QUESTION)) for _ in range(AT_ONCE_MAX)]
    await ticks()
    with pytest.raises(ModelUnavailable):
        await way.begin(QUESTION)
    replica.holds.set()
    assert [asked.turn_id for asked in await asyncio.gather(*taken)] == ["one"] * AT_ONCE_MAX
    assert (await way.begin(QUESTION)).turn_id == "one"


DIES_WHEN_ASKED = """
import asyncio, os, sys
from pathlib import Path
from deployments.chat_door import ChatDoor

async def die(question):
    os._exit(9)

async def main():
    print(ChatDoor(Path(sys.argv[1]), die, 1).open(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_of_a_replica_that_is_killed_one_hears_at_once_and_the_next_question_goes_by_serve(
    way: ChatWay, replica: Replica, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DIES_WHEN_ASKED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    process.stdout.close()

    async def door_of_the_other() -> str:
        replica.looked_for += 1
        return str(left)

    replica.door = door_of_the_other  # type: ignore[method-assign]
    await known(way, replica)
    with pytest.raises(HostLost):
        await way.begin(QUESTION)
    process.wait()
    assert (await way.begin(QUESTION)).turn_id == "one"
    assert left.exists()
    next_one = ChatDoor(tmp_path, replica.begin, 1)
    next_one.open()
    next_one.close()
    assert not left.exists(), "the next replica of the machine removes it"


async def test_a_door_is_for_the_services_own_user_and_goes_when_it_is_closed(replica: Replica) -> None:
    path = replica.at_the_door.open()
    assert path is not None
    assert path.name == f"{platform.node()}-{os.getpid()}.door"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    foreign = path.with_name("elsewhere-1.door")
    foreign.touch()
    assert replica.at_the_door.open() == path
    replica.at_the_door.close()
    assert not path.exists()
    assert foreign.exists()
