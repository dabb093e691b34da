"""Is work with a key done once, and its answer given again, whatever is repeated, cut off or lost?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import KeyValue, ObjectOverloaded, ObjectReset
from actors.runtime.clock import ManualClock
from deployments import idempotency
from deployments.errors import IdempotencyKeyBusy, IdempotencyKeyReused
from deployments.idempotency import KEPT_S, LEASE_S, STORE_NAME, Answer, Idempotency, KeyedRequest, Outcome, key_id
from tests.unit.handles import FailingObjects

LOST = ObjectReset("KeyValue/acme:requests", "its host was lost")
SWAP = ("KeyValue", "swap")


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[KeyValue])
    yield objects
    objects.close()


@pytest.fixture
def once(objects: FailingObjects, clock: ManualClock) -> Idempotency:
    return Idempotency(objects, clock.now)


def keyed(key: str = "k1", *, tenant: str = "acme", route: str = "POST /ingest", body: str = "b1") -> KeyedRequest:
    return KeyedRequest(tenant=tenant, route=route, key=key, fingerprint=body)


class Work:
    """Counts how often it is done, and waits for `may_end` before it ends."""

    def __init__(self, *, is_final: bool = True, waits: bool = False) -> None:
        self.plans: list[str] = []
        self.is_final = is_final
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        if not waits:
            self.may_end.set()

    async def __call__(self, plan: str) -> Outcome:
        self.plans.append(plan)
        number = len(self.plans)
        self.began.set()
        await self.may_end.wait()
        return Outcome(content={"plan": plan, "number": number, "at": 0.1}, is_final=self.is_final)


def first(plan: str = "p1") -> dict[str, Any]:
    return {"plan": plan, "number": 1, "at": 0.1}


async def record(objects: FailingObjects, request: KeyedRequest) -> dict[str, Any]:
    item = await objects.namespace(KeyValue).get(request.tenant, STORE_NAME).get(key_id(request.route, request.key))
    value: dict[str, Any] = item["value"]
    return value


async def test_a_repeat_gets_the_answer_of_the_first_and_does_nothing(once: Idempotency) -> None:
    work = Work()
    answers = [await once.answer(keyed(), plan, work) for plan in ("p1", "p2", "p3")]
    assert answers[0] == Answer(content=first(), replayed=False)
    assert answers[1:] == [Answer(content=first(), replayed=True)] * 2
    assert work.plans == ["p1"]


async def test_a_key_with_another_request_is_refused(once: Idempotency) -> None:
    work = Work()
    await once.answer(keyed(), "p1", work)
    with pytest.raises(IdempotencyKeyReused):
        await once.answer(keyed(body="b2"), "p2", work)
    assert work.plans == ["p1"]


async def test_a_key_is_another_one_for_another_tenant_route_or_key(once: Idempotency) -> None:
    work = Work()
    requests = [keyed(), keyed(tenant="demo"), keyed(route="POST /chat/sessions"), keyed("k2")]
    # A route and a key that would be equal to another's if they were only put together.
    requests += [keyed("b", route="a"), keyed("", route="ab")]
    for number, request in enumerate(requests):
        assert (await once.answer(request, str(number), work)).replayed is False
    assert work.plans == [str(number) for number in range(len(requests))]


async def test_of_many_at_once_one_does_the_work_and_the_others_are_told_to_wait(once: Idempotency) -> None:
    work = Work(waits=True)
    asked = [asyncio.create_task(once.answer(keyed(), str(number), work)) for number in range(10)]
    refused, _ = await asyncio.wait(asked[1:])
    assert {type(task.exception()) for task in refused} == {IdempotencyKeyBusy}
    work.may_end.set()
    assert (await asked[0]).content == first("0")
    assert await once.answer(keyed(), "p", work) == Answer(content=first("0"), replayed=True)
    assert work.plans == ["0"]


async def test_another_request_with_a_key_under_way_is_refused_for_good(once: Idempotency) -> None:
    work = Work(waits=True)
    asked = asyncio.create_task(once.answer(keyed(), "p1", work))
    await work.began.wait()
    with pytest.raises(IdempotencyKeyReused):
        await once.answer(keyed(body="b2"), "p2", work)
    work.may_end.set()
    await asked


async def test_work_that_failed_is_done_again_at_once_by_the_same_plan(once: Idempotency) -> None:
    async def fail(plan: str) -> Outcome:
        raise ObjectOverloaded("x", plan, 1.0)

    with pytest.raises(ObjectOverloaded, match="p1"):
        await once.answer(keyed(), "p1", fail)
    work = Work()
    assert await once.answer(keyed(), "p2", work) == Answer(content=first("p1"), replayed=False)


async def test_an_answer_that_is_not_final_is_given_and_not_kept(once: Idempotency) -> None:
    work = Work(is_final=False)
    assert (await once.answer(keyed(), "p1", work)).content["number"] == 1
    work.is_final = True
    assert await once.answer(keyed(), "p2", work) == Answer(
        content={"plan": "p1", "number": 2, "at": 0.1}, replayed=False
    )
    assert (await once.answer(keyed(), "p3", work)).content["number"] == 2


async def test_a_request_whose_process_died_blocks_its_key_for_a_lease_and_no_longer(
    objects: FailingObjects, clock: ManualClock
) -> None:
    dying, other = Idempotency(objects, clock.now), Idempotency(objects, clock.now)
    stuck = Work(waits=True)
    asked = asyncio.create_task(dying.answer(keyed(), "p1", stuck))
    await stuck.began.wait()
    clock.advance(LEASE_S - 0.1)
    with pytest.raises(IdempotencyKeyBusy):
        await other.answer(keyed(), "p2", Work())
    clock.advance(0.2)
    assert await other.answer(keyed(), "p2", Work()) == Answer(content=first("p1"), replayed=False)

    # It was not dead after all: it says what is recorded, not what it has done itself.
    clock.advance(1)
    stuck.may_end.set()
    assert await asked == Answer(content=first("p1"), replayed=True)


async def test_one_that_finds_another_at_its_work_gives_no_answer_that_is_not_recorded(
    objects: FailingObjects, clock: ManualClock
) -> None:
    slow, quick = Work(waits=True), Work(waits=True)
    asked = []
    for work in (slow, quick):
        asked.append(asyncio.create_task(Idempotency(objects, clock.now).answer(keyed(), "p1", work)))
        await work.began.wait()
        clock.advance(LEASE_S + 1)
    slow.may_end.set()
    with pytest.raises(IdempotencyKeyBusy):
        await asked[0]
    quick.may_end.set()
    assert (await asked[1]).replayed is False


@pytest.mark.parametrize("failing", ["failing", "failing_after"])
async def test_a_lease_is_renewed_while_the_work_goes_on(
    objects: FailingObjects, clock: ManualClock, failing: str
) -> None:
    eager = Idempotency(objects, clock.now, renew_every_s=0.001)
    work = Work(waits=True)
    asked = asyncio.create_task(eager.answer(keyed(), "p1", work))
    await work.began.wait()
    getattr(objects, failing)[SWAP] = [LOST]  # one renewal fails, before or after it came to pass
    clock.advance(LEASE_S * 10)
    async with asyncio.timeout(30):
        while (await record(objects, keyed()))["until"] <= clock.now():
            await asyncio.sleep(0)
    with pytest.raises(IdempotencyKeyBusy):
        await Idempotency(objects, clock.now).answer(keyed(), "p2", Work())
    work.may_end.set()
    assert await asked == Answer(content=first(), replayed=False)
    assert (await eager.answer(keyed(), "p3", work)).replayed is True


@pytest.mark.parametrize("failing", ["failing", "failing_after"])
async def test_no_answer_leaves_before_it_is_recorded(
    once: Idempotency, objects: FailingObjects, clock: ManualClock, failing: str
) -> None:
    work = Work(waits=True)
    asked = asyncio.create_task(once.answer(keyed(), "p1", work))
    await work.began.wait()
    getattr(objects, failing)[SWAP] = [LOST]
    work.may_end.set()
    with pytest.raises(ObjectReset):
        await asked
    clock.advance(LEASE_S + 1)
    again = await once.answer(keyed(), "p2", work)
    assert again.content["plan"] == "p1"
    # Where the record was written after all, the work is not done again.
    assert len(work.plans) == (2 if failing == "failing" else 1)


async def test_a_client_that_goes_away_finds_the_work_done_when_it_comes_back(once: Idempotency) -> None:
    work = Work(waits=True)
    asked = asyncio.create_task(once.answer(keyed(), "p1", work))
    await work.began.wait()
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    with pytest.raises(IdempotencyKeyBusy):
        await once.answer(keyed(), "p2", work)
    work.may_end.set()
    async with asyncio.timeout(30):
        while True:
            try:
                answer = await once.answer(keyed(), "p3", work)
                break
            except IdempotencyKeyBusy:
                await asyncio.sleep(0)
    assert answer == Answer(content=first(), replayed=True)
    assert work.plans == ["p1"]


async def test_an_answer_is_kept_for_its_time_and_outlives_every_process(
    once: Idempotency, objects: FailingObjects, clock: ManualClock, tmp_path: Path
) -> None:
    work = Work()
    await once.answer(keyed(), "p1", work)
    clock.advance(KEPT_S - 1)
    objects.close()
    reopened = FailingObjects(tmp_path, clock, classes=[KeyValue])
    try:
        restarted = Idempotency(reopened, clock.now)
        assert await restarted.answer(keyed(), "p2", work) == Answer(content=first(), replayed=True)
        clock.advance(2)
        assert (await restarted.answer(keyed(body="b2"), "p3", work)).replayed is False
    finally:
        reopened.close()


async def test_only_so_many_answers_of_a_tenant_are_kept_and_the_oldest_leave(
    once: Idempotency, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "RECORDS_MAX", 3)
    for number in range(5):
        clock.advance(1)
        await once.answer(keyed(f"k{number}"), "p", Work())
    replayed = [(await once.answer(keyed(f"k{number}"), "p", Work())).replayed for number in (4, 3, 2, 0)]
    assert replayed == [True, True, True, False]


async def test_a_record_that_made_room_for_others_is_written_all_the_same(
    once: Idempotency, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "RECORDS_MAX", 1)
    work = Work(waits=True)
    asked = asyncio.create_task(once.answer(keyed(), "p1", work))
    await work.began.wait()
    clock.advance(1)
    await once.answer(keyed("k2"), "p", Work())
    work.may_end.set()
    await asked
    assert (await once.answer(keyed(), "p2", work)).replayed is True


async def test_only_so_many_requests_are_under_way(once: Idempotency, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "UNDER_WAY_MAX", 1)
    work = Work(waits=True)
    asked = asyncio.create_task(once.answer(keyed(), "p1", work))
    await work.began.wait()
    with pytest.raises(ObjectOverloaded) as refused:
        await once.answer(keyed("k2"), "p2", work)
    assert refused.value.retryable
    work.may_end.set()
    await asked
    assert (await once.answer(keyed("k2"), "p2", work)).replayed is False


async def test_the_key_itself_is_not_kept(once: Idempotency, tmp_path: Path) -> None:
    await once.answer(keyed("a-telling-key"), "p1", Work())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"http-" in path.read_bytes() for path in files)
    assert not any(b"a-telling-key" in path.read_bytes() for path in files)
