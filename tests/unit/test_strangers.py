"""Do clients that are new wait for each other, and those that are known for nobody?"""

from __future__ import annotations

import asyncio

import pytest

from actors import ObjectOverloaded
from deployments.strangers import RETRY_AFTER_S, Strangers


async def test_only_so_many_new_clients_are_asked_for_at_once() -> None:
    strangers = Strangers(at_once_max=2)
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


async def test_as_many_wait_as_leave_room_for_clients_that_are_known() -> None:
    strangers, may_go = Strangers(at_once_max=1, waiting_max=2), asyncio.Event()

    async def come(client: str) -> None:
        async with strangers.turn("acme", client):
            await may_go.wait()

    coming = [asyncio.create_task(come(client)) for client in ("a", "b", "b", "c")]
    await asyncio.sleep(0)
    with pytest.raises(ObjectOverloaded) as refused:
        await come("d")
    assert refused.value.retry_after_s == RETRY_AFTER_S
    coming.pop().cancel()
    await asyncio.sleep(0)
    coming.append(asyncio.create_task(come("d")))
    may_go.set()
    await asyncio.gather(*coming)
    assert [strangers.is_known("acme", client) for client in "abcd"] == [True, True, False, True]
