"""Does every process hear of a reset or of changed limits before the one who made it is told that it is done?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import LimitNews, ObjectReset, TokenBucket
from actors.bucket import Decision, Policy
from actors.limit_news import KEPT_MAX, LEASE_S, NEWS_NAME, NEWS_TENANT
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments.denials import Denials
from deployments.limit_changes import LimitChanges
from deployments.live_limits import LiveLimits
from deployments.quotas import RouteQuota
from deployments.tenant_files import TenantFiles
from tests.unit.handles import FailingObjects, new_leases, tenant

QUOTA = RouteQuota.of((Policy("default", 0, 5),), 1)
DENIED = Decision(False, (0.0,), (86_400.0,))
WITHIN_S = 10.0


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path / "data", clock, classes=[LimitNews, TokenBucket])
    yield objects
    objects.close()


@pytest.fixture
def news(objects: FailingObjects) -> Stub[LimitNews]:
    return objects.namespace(LimitNews).get(NEWS_TENANT, NEWS_NAME)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tenants"
    folder.mkdir()
    return folder


def written(folder: Path, name: str = "acme", limits: str = "{}", more: str = "") -> Path:
    file = folder / f"{name}.yaml"
    text = f"tenant: {name}\nkeys: [{{id: all, plain: sk-{name}, scopes: [chat, ingest, search, kv, admin]}}]\n"
    file.write_text(f"{text}limits: {limits}\n{more}")
    return file


def running(*names: str) -> dict[str, TenantConfig]:
    return {name: tenant(name) for name in names or ("acme",)}


class Replica:
    """One process that lets clients in."""

    def __init__(self, objects: FailingObjects, folder: Path, name: str) -> None:
        self.limits = LiveLimits(running())
        self.denials = Denials(objects.clock.monotonic)
        self.leases = new_leases(objects.clock, name)
        files = TenantFiles(ServiceConfig(tenants_dir=folder), running())
        self.changes = LimitChanges(
            objects, files, self.limits, [self.denials, self.leases], reader=name, monotonic=objects.clock.monotonic
        )

    def remember(self, *clients: str) -> None:
        for client in clients:
            self.denials.remember("acme", client, QUOTA, DENIED, self.denials.before_asking())

    def denied(self, *clients: str) -> list[bool]:
        return [self.denials.answer("acme", client, QUOTA, 1) is not None for client in clients]


@pytest.fixture
def replicas(objects: FailingObjects, folder: Path) -> list[Replica]:
    return [Replica(objects, folder, name) for name in ("one", "two")]


async def listening(replicas: list[Replica]) -> list[asyncio.Task[None]]:
    """All of them, when each has heard from the news once."""
    for replica in replicas:
        replica.remember("before")
    tasks = [asyncio.create_task(replica.changes.listen()) for replica in replicas]
    for replica in replicas:
        async with asyncio.timeout(WITHIN_S):
            while True:
                replica.remember("probe")
                if replica.denied("probe") == [True]:
                    break
                await asyncio.sleep(0)
    return tasks


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_reset_that_was_announced_holds_in_all_processes(replicas: list[Replica]) -> None:
    tasks = await listening(replicas)
    for replica in replicas:
        # What was remembered before there was word of resets may be wrong.
        assert replica.denied("before") == [False]
        replica.remember("reset", "other")
    await replicas[0].changes.announce("acme", "reset")
    for replica in replicas:
        assert replica.denied("reset", "other") == [False, True]
    await ended(tasks)


async def test_an_announcement_waits_for_who_has_not_heard_and_not_for_who_is_gone(
    news: Stub[LimitNews], clock: ManualClock
) -> None:
    first = await news.poll("one", None)
    await news.poll("two", None)
    number = await news.tell("acme", "c")
    assert not await news.heard(number, 0)
    page = await news.poll("one", first["number"])
    assert page == {"number": number, "told": [{"tenant": "acme", "client": "c"}], "missed": False}
    assert not await news.heard(number, 0)
    polling = asyncio.create_task(news.poll("one", page["number"]))
    await asyncio.sleep(0)
    assert not await news.heard(number, 0)
    # The other one is not to act on what it remembers any more.
    clock.advance(LEASE_S + 0.1)
    assert await news.heard(number, 0)
    await news.tell("acme", "d")
    async with asyncio.timeout(WITHIN_S):
        assert [told["client"] for told in (await polling)["told"]] == ["d"]


async def test_who_waits_hears_as_soon_as_all_have(news: Stub[LimitNews]) -> None:
    await news.poll("one", None)
    number = await news.tell("acme", "c")
    waiting = asyncio.create_task(news.heard(number))
    await asyncio.sleep(0)
    polling = asyncio.create_task(news.poll("one", number))
    async with asyncio.timeout(1):
        assert await waiting
    polling.cancel()


async def test_after_a_restart_of_the_news_readers_are_thought_to_be_there_until_they_can_not(
    objects: FailingObjects, news: Stub[LimitNews], clock: ManualClock
) -> None:
    await news.poll("one", None)
    objects.host.evict(news.id)
    number = await news.tell("acme", "c")
    assert not await news.heard(number, 0)
    clock.advance(LEASE_S + 0.1)
    assert await news.heard(number, 0)


async def test_news_that_nobody_listens_to_wait_for_nobody(news: Stub[LimitNews]) -> None:
    assert await news.heard(await news.tell("acme", "c"), 0)


async def test_who_was_away_for_long_is_told_that_it_has_missed_some(news: Stub[LimitNews]) -> None:
    first = await news.poll("one", None)
    for number in range(KEPT_MAX):
        await news.tell("acme", str(number))
    page = await news.poll("one", first["number"])
    assert (len(page["told"]), page["missed"]) == (KEPT_MAX, False)
    await news.tell("acme", "more")
    assert (await news.poll("one", first["number"]))["missed"]


async def test_who_has_heard_of_more_than_there_is_has_missed_the_news_begin_anew(
    objects: FailingObjects, news: Stub[LimitNews], replicas: list[Replica]
) -> None:
    one = replicas[0]
    after = await one.changes.hear(None)
    one.remember("c")
    page = await news.poll("one", after + 50, 0)
    assert page["missed"]
    assert await one.changes.hear(after + 50) == after
    assert one.denied("c") == [False]


async def test_a_process_that_hears_nothing_stops_answering_from_memory(
    objects: FailingObjects, replicas: list[Replica], clock: ManualClock
) -> None:
    one = replicas[0]
    await one.changes.hear(None)
    one.remember("c")
    clock.advance(LEASE_S - 0.1)
    assert one.denied("c") == [True]
    clock.advance(0.2)
    assert one.denied("c") == [False]


async def test_an_announcement_of_which_nobody_can_be_sure_says_so(
    objects: FailingObjects, replicas: list[Replica]
) -> None:
    await replicas[1].changes.hear(None)
    objects.failing[LimitNews.__name__, "tell"] = [ObjectReset("LimitNews/_service:limits", "lost")] * 100
    with pytest.raises(ObjectReset):
        await replicas[0].changes.announce("acme", "c")


async def test_listening_goes_on_when_the_news_were_away(
    objects: FailingObjects, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica(objects, folder, "one")
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        objects.failing.clear()

    objects.failing["LimitNews", "poll"] = [ObjectReset("LimitNews/_service:limits", "lost")] * 100
    replica.changes._sleep = pause  # what it was given
    # No repeat of the stub's own: that it gives up is what is looked at.
    task = asyncio.create_task(replica.changes.listen())
    async with asyncio.timeout(30):
        while not pauses or replica.denied("c") != [True]:
            replica.remember("c")
            await asyncio.sleep(0.01)
    await ended([task])
    assert any("the news of limits are not reached" in message for message in caplog.messages)


# The files


def files(folder: Path, *names: str) -> TenantFiles:
    return TenantFiles(ServiceConfig(tenants_dir=folder), running(*names))


def test_the_limits_of_a_file_are_found_when_it_has_changed_and_only_then(folder: Path) -> None:
    file, watched = written(folder), files(folder)
    assert watched.look().keys() == {"acme"}
    assert watched.look() == {}
    written(folder, limits="{capacity: 7}")
    assert watched.look()["acme"].limits.capacity == 7
    assert watched.look() == {}
    # As long, in the same second, and another file all the same.
    status = file.stat()
    written(folder, limits="{capacity: 8}")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert watched.look()["acme"].limits.capacity == 8
    assert watched.standing().restart == {}


def test_a_file_that_is_not_as_it_must_be_leaves_the_limits_and_the_other_tenants(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(folder, "demo")
    written(folder, limits="{capacity: no number}")
    watched = files(folder, "acme", "demo")
    assert watched.look().keys() == {"demo"}
    assert watched.look() == {}
    assert watched.standing().problems.keys() == {"acme.yaml"}
    assert len([message for message in caplog.messages if "the limits of before stay" in message]) == 1
    written(folder, limits="{capacity: 5}")
    assert watched.look().keys() == {"acme"}
    assert watched.standing().problems == {}


def test_what_else_has_changed_waits_for_a_restart_and_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(folder, limits="{capacity: 7}", more="sessions: {messages_max: 3}\nmodel: {temperature: 1}\n")
    written(folder, "new")
    gone = written(folder, "gone")
    watched = files(folder, "acme", "gone")
    assert {name: found.limits.capacity for name, found in watched.look().items()} == {"acme": 7, "gone": 100}
    gone.unlink()
    assert watched.look() == {}
    assert watched.standing().restart == {
        "acme": "sessions, model",
        "new": "it is new",
        "gone": "it has no file any more",
    }
    watched.look()
    assert len(caplog.messages) == 3
    written(folder, limits="{capacity: 7}")
    watched.look()
    assert "acme" not in watched.standing().restart


def test_budgets_and_limits_on_turns_are_taken_over_too(folder: Path) -> None:
    written(folder, more="budgets: [{name: daily, per: day, output_tokens: 5}]\nconcurrency: {per_client: 2}\n")
    watched = files(folder)
    found = watched.look()["acme"]
    assert ([budget.output_tokens for budget in found.budgets], found.concurrency.per_client) == ([5], 2)
    assert watched.standing().restart == {}


def test_budgets_of_another_model_wait_for_it_and_those_of_before_stay(folder: Path) -> None:
    watched = files(folder)
    written(folder, more="budgets: [{name: daily, per: day, output_tokens: 5}]\n")
    watched.look()
    other = "model: {base_url: 'http://127.0.0.1:1/v1', model: other}\n"
    written(folder, more=f"{other}budgets: [{{name: daily, per: day, model: other, output_tokens: 9}}]\n")
    found = watched.look()["acme"]
    assert [budget.output_tokens for budget in found.budgets] == [5]
    assert found.model.name == "embedded"
    assert watched.standing().restart == {"acme": "model, budgets"}


def test_a_folder_that_is_not_there_is_told_of_once_and_changes_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.rmdir()
    watched = files(folder)
    assert watched.look() == {}
    assert watched.look() == {}
    assert len(caplog.messages) == 1
    assert watched.standing().problems.keys() == {""}
    folder.mkdir()
    written(folder)
    assert watched.look().keys() == {"acme"}
    assert watched.standing().problems == {}


async def test_changed_limits_that_were_announced_hold_in_all_processes(
    replicas: list[Replica], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = await listening(replicas)
    written(folder, limits="{capacity: 7, fail: open}")
    for replica in replicas:
        replica.remember("c")
    await replicas[0].changes.announce()
    for replica in replicas:
        assert replica.limits.of("acme").routes["kv"].policies[0].capacity == 7
        assert replica.limits.of("acme").fail == "open"
        assert replica.denied("c") == [False]
    assert "limits have changed of: acme" in caplog.messages
    await ended(tasks)


async def test_files_are_looked_at_again_and_again(objects: FailingObjects, folder: Path) -> None:
    replica = Replica(objects, folder, "one")
    written(folder)
    looks = 0

    async def next_look(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise asyncio.CancelledError
        written(folder, limits=f"{{capacity: {looks}00}}")

    replica.changes._sleep = next_look  # what it was given
    with pytest.raises(asyncio.CancelledError):
        await replica.changes.watch()
    assert replica.limits.of("acme").routes["kv"].policies[0].capacity == 200


async def test_buckets_can_learn_which_policies_there_are_and_were_told_again_where_that_failed(
    objects: FailingObjects, folder: Path, news: Stub[LimitNews], caplog: pytest.LogCaptureFixture
) -> None:
    written(folder)
    replica, known = Replica(objects, folder, "one"), [await news.policies("acme")]
    objects.failing["LimitNews", "know"] = [ObjectReset("LimitNews/_service:limits", "lost")] * 100

    async def next_look(_: float) -> None:
        objects.failing.clear()
        known.append(await news.policies("acme"))
        if len(known) == 4:
            written(folder, limits="{policies: [{name: burst, capacity: 5, refill_per_second: 1}]}")
        if len(known) == 6:
            raise asyncio.CancelledError

    replica.changes._sleep = next_look  # what it was given
    with pytest.raises(asyncio.CancelledError):
        await replica.changes.watch()
    assert known == [[], [], ["default"], ["default"], ["burst"], ["burst"]]
    assert "the news of limits are not told of policies" in caplog.text
