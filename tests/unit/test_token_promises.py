"""Is a turn promised tokens and leased only where both are there, and does all of it come back?"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import LocalBackend, TokenUsage
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.token_budget import PROMISED_RETRY_AFTER_S, Budget, Ruling
from actors.token_reservations import SETTLED_KEPT_S, Promise
from actors.token_usage import TURNS_PER_CLIENT, TURNS_PER_TENANT, USAGE_NAME, Verdict
from actors.turn_leases import LAPSED_KEPT_S, LEASE_S, Concurrency
from tests.unit.objects_fixtures import Hibernating

TTL_S = 60.0
YEAR_S = 365 * 86_400.0
#: 2026-03-01, an hour before midnight.
AT = datetime.datetime(2026, 3, 1, 23, tzinfo=datetime.UTC).timestamp()
DAILY = Budget("daily", None, "day", 1_000, 100)
ANY = Concurrency(None, None)
ONE_EACH = Concurrency(1, 2)
GRANTED = Verdict(Ruling.GRANTED)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(AT)


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def usage(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Stub[TokenUsage]]:
    backend = request.param(tmp_path, [TokenUsage], settings=HostSettings(slots=4), clock=clock)
    yield backend.namespace(TokenUsage).get("acme", USAGE_NAME)
    backend.close()


def promise(output_tokens: int, input_tokens: int = 10, call: int = 0, *, model: str = "m") -> Promise:
    return Promise(call, model, input_tokens, output_tokens, True, TTL_S)


async def admitted(
    usage: Stub[TokenUsage],
    turn_id: str,
    asked: Promise,
    *budgets: Budget,
    client: str = "ann",
    concurrency: Concurrency = ANY,
) -> Verdict:
    verdict: Verdict = await usage.admit(turn_id, client, f"h-{turn_id}", asked, budgets or (DAILY,), concurrency)
    return verdict


async def spent(usage: Stub[TokenUsage], budget: Budget = DAILY) -> tuple[int, int]:
    """Tokens of answers, used and promised."""
    (state,) = (await usage.allowance((budget,), ANY, ""))["budgets"]
    return state["output_tokens"]["used"], state["output_tokens"]["promised"]


async def in_flight(usage: Stub[TokenUsage], client: str = "ann") -> tuple[int, int]:
    found: Any = (await usage.allowance((), ONE_EACH, client))["turns_in_flight"]
    return found["client"], found["tenant"]


async def test_many_at_once_are_promised_no_more_than_there_is(usage: Stub[TokenUsage]) -> None:
    found = [await admitted(usage, f"t{number}", promise(20)) for number in range(50)]
    assert found[:5] == [GRANTED] * 5
    assert set(found[5:]) == {Verdict(Ruling.PROMISED, ("daily",), PROMISED_RETRY_AFTER_S)}
    assert await spent(usage) == (0, 100)


async def test_what_a_call_did_not_use_comes_back_when_it_ends(usage: Stub[TokenUsage]) -> None:
    await admitted(usage, "t1", promise(90))
    await usage.settle("t1", 0, 12, 30)
    assert await spent(usage) == (30, 0)
    assert await admitted(usage, "t2", promise(70)) == GRANTED
    await usage.settle("t2", 0, 0, 0)
    assert await spent(usage) == (30, 0)


async def test_what_was_used_is_spent_until_the_window_ends(usage: Stub[TokenUsage], clock: ManualClock) -> None:
    await admitted(usage, "t1", promise(90))
    await usage.settle("t1", 0, 12, 90)
    assert await admitted(usage, "t2", promise(20)) == Verdict(Ruling.SPENT, ("daily",), 3_600.0)
    await usage.add.once("t1")(AT, "m", 12, 90, "t1")
    assert await admitted(usage, "t2", promise(20)) == Verdict(Ruling.SPENT, ("daily",), 3_600.0)
    clock.advance(3_600.0)
    assert await admitted(usage, "t2", promise(20)) == GRANTED


async def test_a_turn_that_is_counted_counts_once(usage: Stub[TokenUsage]) -> None:
    await admitted(usage, "t1", promise(20))
    await usage.settle("t1", 0, 10, 15)
    await usage.reserve("t1", promise(40, call=1001), (DAILY,))
    assert await spent(usage) == (15, 40)
    for _ in range(2):
        await usage.add.once("t1")(AT, "m", 30, 25, "t1")
        assert await spent(usage) == (25, 0)
    await usage.settle("t1", 1001, 20, 10)  # it is late, and was counted
    assert await spent(usage) == (25, 0)


async def test_a_promise_lapses_where_its_caller_is_lost(usage: Stub[TokenUsage], clock: ManualClock) -> None:
    await admitted(usage, "t1", promise(100))
    clock.advance(TTL_S - 1)
    assert (await admitted(usage, "t2", promise(100))).ruling is Ruling.PROMISED
    clock.advance(1)
    assert await spent(usage) == (0, 0)
    assert await admitted(usage, "t2", promise(100)) == GRANTED


async def test_what_was_used_and_never_counted_is_kept_for_a_day(usage: Stub[TokenUsage], clock: ManualClock) -> None:
    await admitted(usage, "t1", promise(100))
    await usage.settle("t1", 0, 1, 100)
    clock.advance(SETTLED_KEPT_S - 1)
    assert await spent(usage) == (100, 0)
    clock.advance(1)
    assert await spent(usage) == (0, 0)


async def test_a_clock_that_was_set_back_makes_no_promise_and_no_lease_last_longer(
    usage: Stub[TokenUsage], clock: ManualClock
) -> None:
    clock.set_wall(AT + YEAR_S)
    await admitted(usage, "t1", promise(100), concurrency=ONE_EACH)
    clock.set_wall(AT)
    assert (await admitted(usage, "t2", promise(1), concurrency=ONE_EACH)).violated == (TURNS_PER_CLIENT, "daily")
    clock.advance(max(TTL_S, LEASE_S))
    assert await admitted(usage, "t2", promise(100), concurrency=ONE_EACH) == GRANTED


async def test_a_turn_that_is_admitted_again_has_what_it_had(usage: Stub[TokenUsage]) -> None:
    for _ in range(3):
        assert await admitted(usage, "t1", promise(60), concurrency=ONE_EACH) == GRANTED
    assert (await spent(usage), await in_flight(usage)) == ((0, 60), (1, 1))
    assert await admitted(usage, "t1", promise(100), concurrency=ONE_EACH) == GRANTED
    assert await spent(usage) == (0, 100)


async def test_a_call_that_has_ended_is_promised_nothing_again(usage: Stub[TokenUsage]) -> None:
    await admitted(usage, "t1", promise(60))
    await usage.settle("t1", 0, 5, 50)
    await admitted(usage, "t1", promise(60))
    await usage.settle("t1", 0, 0, 0)
    assert await spent(usage) == (50, 0)


async def test_a_turn_gets_its_lease_and_its_tokens_or_neither(usage: Stub[TokenUsage]) -> None:
    assert await admitted(usage, "t1", promise(60), concurrency=ONE_EACH) == GRANTED
    denied = await admitted(usage, "t2", promise(10), concurrency=ONE_EACH)
    assert denied == Verdict(Ruling.PROMISED, (TURNS_PER_CLIENT,), 1.0)
    denied = await admitted(usage, "t3", promise(60), client="bob", concurrency=ONE_EACH)
    assert denied == Verdict(Ruling.PROMISED, ("daily",), PROMISED_RETRY_AFTER_S)
    assert (await spent(usage), await in_flight(usage)) == ((0, 60), (1, 1))


async def test_turns_are_counted_by_client_and_for_all(usage: Stub[TokenUsage]) -> None:
    for client in ("ann", "bob"):
        assert await admitted(usage, f"t-{client}", promise(1), client=client, concurrency=ONE_EACH) == GRANTED
    denied = await admitted(usage, "t3", promise(1), client="cy", concurrency=ONE_EACH)
    assert (denied.violated, denied.retry_after_s) == ((TURNS_PER_TENANT,), 1.0)
    denied = await admitted(usage, "t4", promise(1), concurrency=ONE_EACH)
    assert denied.violated == (TURNS_PER_CLIENT, TURNS_PER_TENANT)
    await usage.release("t-ann", "another")
    assert await in_flight(usage) == (1, 2)
    await usage.release("t-ann", "h-t-ann")
    assert await in_flight(usage) == (0, 1)
    assert await admitted(usage, "t4", promise(1), concurrency=ONE_EACH) == GRANTED


async def test_a_lease_lasts_while_it_is_renewed_and_no_longer(usage: Stub[TokenUsage], clock: ManualClock) -> None:
    await admitted(usage, "t1", promise(1), concurrency=ONE_EACH)
    for _ in range(5):
        clock.advance(LEASE_S - 1)
        await usage.renew("t1", "h-t1")
    assert await in_flight(usage) == (1, 1)
    clock.advance(LEASE_S)
    assert await in_flight(usage) == (0, 0)


async def test_who_takes_a_turn_over_holds_it_for_the_same_client(usage: Stub[TokenUsage], clock: ManualClock) -> None:
    await admitted(usage, "t1", promise(1), concurrency=ONE_EACH)
    clock.advance(LAPSED_KEPT_S)
    await admitted(usage, "t2", promise(1), concurrency=ONE_EACH)
    await usage.renew("t1", "other")  # though there is one already
    assert await in_flight(usage) == (2, 2)
    await usage.release("t1", "h-t1")
    assert await in_flight(usage) == (2, 2)
    await usage.release("t1", "other")
    assert await in_flight(usage) == (1, 1)


async def test_a_budget_that_was_changed_holds_at_once(usage: Stub[TokenUsage]) -> None:
    await admitted(usage, "t1", promise(60))
    assert await admitted(usage, "t2", promise(140), DAILY._replace(output_tokens=200)) == GRANTED
    assert (await admitted(usage, "t3", promise(1), DAILY)).ruling is Ruling.PROMISED
    assert await spent(usage) == (0, 200)


async def test_budgets_look_at_their_own_model_and_window(usage: Stub[TokenUsage]) -> None:
    of_a = Budget("a", "a", "month", None, 50)
    await usage.add(AT - 2 * 86_400, "a", 1, 40)  # in February
    await usage.add(AT - 3_600, "a", 1, 10)
    await usage.add(AT - 3_600, "b", 1, 30)
    assert await spent(usage, of_a) == (10, 0)
    assert await spent(usage) == (40, 0)
    assert await admitted(usage, "t1", promise(50, model="b"), of_a) == GRANTED
    verdict = await admitted(usage, "t2", promise(41, model="a"), of_a, DAILY)
    assert verdict == Verdict(Ruling.SPENT, ("a", "daily"), 30 * 86_400 + 3_600.0)


async def test_a_call_that_no_window_can_pay_for_is_told_so(usage: Stub[TokenUsage]) -> None:
    await admitted(usage, "t1", promise(100), concurrency=ONE_EACH)
    assert await admitted(usage, "t2", promise(101), concurrency=ONE_EACH) == Verdict(Ruling.NEVER, ("daily",))


async def test_where_nothing_is_limited_nothing_is_kept(usage: Stub[TokenUsage]) -> None:
    assert await usage.admit("t1", "ann", "h", promise(10**9), (), ANY) == GRANTED
    assert await usage.allowance((), ANY, "ann") == {"budgets": [], "turns_in_flight": None}
    assert await spent(usage, DAILY._replace(output_tokens=None)) == (0, 0)
