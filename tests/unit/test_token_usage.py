"""Is what a tenant's turns use counted once, on its day?"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import LocalBackend, TokenUsage
from actors.runtime import RequestReused
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.token_usage import DAYS_KEPT, USAGE_NAME
from tests.unit.objects_fixtures import Hibernating

DAY_S = 86_400.0
#: 2026-03-01, just before midnight.
AT = datetime.datetime(2026, 3, 1, 23, 59, 59, tzinfo=datetime.UTC).timestamp()


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, [TokenUsage], settings=HostSettings(slots=4))
    yield backend
    backend.close()


@pytest.fixture
def usage(objects: LocalBackend) -> Stub[TokenUsage]:
    return objects.namespace(TokenUsage).get("acme", USAGE_NAME)


async def test_turns_are_added_up_by_day_and_model(usage: Stub[TokenUsage]) -> None:
    await usage.add.once("t1")(AT, "b", 10, 1)
    await usage.add.once("t2")(AT, "b", 20, 2)
    await usage.add.once("t3")(AT, "a", 5, 0)
    await usage.add.once("t4")(AT + 1, "b", 7, 7)
    assert await usage.days("2026-03-01", "2026-03-02") == [
        {"day": "2026-03-01", "model": "a", "turns": 1, "input_tokens": 5, "output_tokens": 0},
        {"day": "2026-03-01", "model": "b", "turns": 2, "input_tokens": 30, "output_tokens": 3},
        {"day": "2026-03-02", "model": "b", "turns": 1, "input_tokens": 7, "output_tokens": 7},
    ]


async def test_a_turn_that_is_told_again_counts_once(usage: Stub[TokenUsage]) -> None:
    for _ in range(3):
        await usage.add.once("t1")(AT, "m", 10, 1)
    (day,) = await usage.days("2026-03-01", "2026-03-01")
    assert (day["turns"], day["input_tokens"]) == (1, 10)


async def test_a_turn_can_not_change_what_it_used(usage: Stub[TokenUsage]) -> None:
    await usage.add.once("t1")(AT, "m", 10, 1)
    with pytest.raises(RequestReused):
        await usage.add.once("t1")(AT, "m", 11, 1)


async def test_days_outside_of_those_asked_for_are_left_out(usage: Stub[TokenUsage]) -> None:
    for number in range(4):
        await usage.add(AT + number * DAY_S, "m", 1, 1)
    assert [day["day"] for day in await usage.days("2026-03-02", "2026-03-03")] == ["2026-03-02", "2026-03-03"]
    assert await usage.days("2026-03-03", "2026-03-02") == []


async def test_days_are_not_kept_for_ever(usage: Stub[TokenUsage]) -> None:
    await usage.add(AT, "m", 1, 1)
    await usage.add(AT + DAYS_KEPT * DAY_S, "m", 1, 1)
    assert len(await usage.days("2000-01-01", "2100-01-01")) == 2
    await usage.add(AT + (DAYS_KEPT + 1) * DAY_S, "m", 1, 1)
    assert "2026-03-01" not in [day["day"] for day in await usage.days("2000-01-01", "2100-01-01")]


async def test_tenants_are_counted_apart(objects: LocalBackend, usage: Stub[TokenUsage]) -> None:
    await usage.add(AT, "m", 1, 1)
    assert await objects.namespace(TokenUsage).get("globex", USAGE_NAME).days("2000-01-01", "2100-01-01") == []
