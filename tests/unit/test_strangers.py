"""Do clients that are new wait for each other, and those that are known for nobody?"""

from __future__ import annotations

import asyncio

import pytest

from deployments.errors import TooManyNewClients
from deployments.strangers import RETRY_AFTER_S, Strangers

#: Longer than any test.
LONG_S = 600.0


async def test_only_so_many_new_clients_are_asked_for_at_once() -> None:
    strangers = Strangers(at_once_max=2, turn_max_s=LONG_S)
    goes_on = asyncio.Event()
    inside = 0

    async def ask(number: int) -> None:
        nonlocal inside
        async with strangers.turn("acme", str(number)):
            inside += 1
            await goes_on.wait()

    tasks = [asyncio.create_task(ask(number)) for number in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert inside == 2
    goes_on.set()
    await asyncio.gather(*tasks)
    assert inside == 5
    assert all(strangers.is_known("acme", str(number)) for number in range(5))


async def test_a_client_is_known_by_tenant_and_name_once_its_bucket_has_answered() -> None:
    strangers = Strangers()
    with pytest.raises(RuntimeError):
        async with strangers.turn("acme", "c"):
            raise RuntimeError("its host was lost")
    assert not strangers.is_known("acme", "c")
    async with strangers.turn("acme", "c"):
        assert not strangers.is_known("acme", "c")
    assert strangers.is_known("acme", "c")
    assert not strangers.is_known("demo", "c")


async def test_who_comes_again_and_again_stays_known_and_others_are_forgotten() -> None:
    strangers = Strangers(known_max=10)
    for number in range(100):
        for client in ("honest", f"stranger-{number}"):
            if not strangers.is_known("acme", client):
                assert client != "honest" or number == 0
                async with strangers.turn("acme", client):
                    pass
    known = [number for number in range(100) if strangers.is_known("acme", f"stranger-{number}")]
    assert len(known) <= 10
    assert 99 in known


class Crowd:
    """Clients that come, each to stay until it is let go."""

    def __init__(self, strangers: Strangers) -> None:
        self.strangers = strangers
        self.came: list[tuple[str, str]] = []
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._may_go: dict[tuple[str, str], asyncio.Event] = {}

    async def _ask(self, key: tuple[str, str], may_go: asyncio.Event) -> None:
        async with self.strangers.turn(*key):
            self.came.append(key)
            await may_go.wait()

    async def come(self, tenant: str, client: str) -> asyncio.Task[None]:
        key, may_go = (tenant, client), asyncio.Event()
        self._may_go[key] = may_go
        self._tasks[key] = asyncio.create_task(self._ask(key, may_go))
        await settle()
        return self._tasks[key]

    async def go(self, tenant: str, client: str) -> None:
        self._may_go[tenant, client].set()
        await self._tasks[tenant, client]
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_as_many_wait_as_leave_room_for_clients_that_are_known() -> None:
    crowd = Crowd(Strangers(waiting_max=2, turn_max_s=LONG_S))
    for client in ("a", "b", "c"):
        await crowd.come("acme", client)
    again = await crowd.come("acme", "b")  # the same client takes no other place
    with pytest.raises(TooManyNewClients) as refused:
        await (await crowd.come("acme", "d"))
    assert refused.value.retry_after_s == RETRY_AFTER_S
    assert not again.done()
    assert crowd.came == [("acme", "a")]


async def test_a_tenant_with_many_waiting_makes_room_for_others() -> None:
    crowd = Crowd(Strangers(waiting_max=4, turn_max_s=LONG_S))
    flood = [await crowd.come("acme", client) for client in ("a", "b", "c", "d", "e", "e")]
    for number, client in enumerate(("a", "b")):
        await crowd.come("demo", client)
        # The newest give way, with all that they have asked.
        assert [task.done() for task in flood] == [False] * (4 - number) + [True] * (2 + number)
    for tenant in ("demo", "acme"):
        with pytest.raises(TooManyNewClients):
            await (await crowd.come(tenant, "f"))
    for task in flood[3:]:
        with pytest.raises(TooManyNewClients):
            await task
    while len(crowd.came) < 5:
        await crowd.go(*crowd.came[-1])
    assert crowd.came == [("acme", "a"), ("acme", "b"), ("demo", "a"), ("acme", "c"), ("demo", "b")]
    await crowd.go("demo", "b")
    assert crowd.strangers.free == 1


async def test_a_place_is_free_again_when_its_client_goes_away() -> None:
    crowd = Crowd(Strangers(waiting_max=1, turn_max_s=LONG_S))
    await crowd.come("acme", "a")
    gone = await crowd.come("acme", "b")
    gone.cancel()
    await settle()
    await crowd.come("acme", "c")
    await crowd.go("acme", "a")
    assert crowd.came == [("acme", "a"), ("acme", "c")]
    await crowd.go("acme", "c")
    assert not (await crowd.come("acme", "d")).done()
    assert crowd.came[-1] == ("acme", "d")


async def test_tenants_take_turns() -> None:
    crowd = Crowd(Strangers(turn_max_s=LONG_S))
    for client in ("a", "b", "c", "d"):
        await crowd.come("acme", client)
    for client in ("a", "b"):
        await crowd.come("demo", client)
    while len(crowd.came) < 6:
        await crowd.go(*crowd.came[-1])
    assert crowd.came == [
        ("acme", "a"), ("acme", "b"), ("demo", "a"), ("acme", "c"), ("demo", "b"), ("acme", "d"),
    ]  # fmt: skip


async def test_one_that_takes_long_does_not_keep_the_others_waiting() -> None:
    crowd = Crowd(Strangers(turn_max_s=0.0))
    for client in ("hangs", "b", "c"):
        await crowd.come("acme", client)
    assert crowd.came == [("acme", "hangs"), ("acme", "b"), ("acme", "c")]
    # Nor does its end give another turn away.
    for client in ("hangs", "b", "c"):
        await crowd.go("acme", client)
    assert crowd.strangers.free == 1


async def test_one_whose_turn_does_not_come_in_time_is_refused_and_leaves_its_place() -> None:
    strangers = Strangers(waiting_max=1, turn_max_s=LONG_S)
    crowd = Crowd(strangers)
    await crowd.come("acme", "a")
    with pytest.raises(TooManyNewClients):
        async with strangers.turn("acme", "late", within_s=0.0):
            pass
    await crowd.come("acme", "b")
    await crowd.go("acme", "a")
    assert crowd.came == [("acme", "a"), ("acme", "b")]
    assert not strangers.is_known("acme", "late")
