"""Is each use of a model told once, whatever happens on the way?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import InvalidArgument, ObjectReset, TokenUsage
from actors.runtime.clock import ManualClock
from actors.token_usage import USAGE_NAME
from deployments.usage_log import UsageLog
from tests.unit.handles import FailingObjects

LOST = ObjectReset("TokenUsage/acme:tokens", "its host was lost")
ADD = ("TokenUsage", "add")


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, ManualClock())
    yield objects
    objects.close()


async def used(objects: FailingObjects, tenant: str = "acme") -> list[tuple[str, int, int, int]]:
    days = await objects.namespace(TokenUsage).get(tenant, USAGE_NAME).days("0000", "9999")
    return [(day["model"], day["turns"], day["input_tokens"], day["output_tokens"]) for day in days]


async def test_uses_are_added_up_by_tenant_and_model(objects: FailingObjects) -> None:
    log = UsageLog(objects, ManualClock().now)
    for tenant, model in (("acme", "a"), ("acme", "a"), ("acme", "b"), ("other", "a")):
        log.note(tenant, model, input_tokens=3, output_tokens=2)
    await log.told()
    assert await used(objects) == [("a", 2, 6, 4), ("b", 1, 3, 2)]
    assert await used(objects, "other") == [("a", 1, 3, 2)]


async def test_a_use_that_was_told_without_an_answer_counts_once(objects: FailingObjects) -> None:
    log = UsageLog(objects, ManualClock().now)
    objects.failing_after[ADD] = [LOST]
    objects.failing[ADD] = [LOST]
    log.note("acme", "a", input_tokens=3, output_tokens=2)
    await log.told()
    assert await used(objects) == [("a", 1, 3, 2)]


async def test_a_use_that_can_not_be_told_keeps_no_other_back(objects: FailingObjects) -> None:
    log = UsageLog(objects, ManualClock().now)
    objects.failing[ADD] = [InvalidArgument("model", "a", "is refused")]
    log.note("acme", "a", input_tokens=3, output_tokens=2)
    log.note("acme", "b", input_tokens=1, output_tokens=1)
    await log.told()
    assert await used(objects) == [("b", 1, 1, 1)]
