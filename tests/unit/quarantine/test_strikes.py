"""Is an object that harms its host refused, and one that was only there when it happened not?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime import (
    InvalidArgument,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectQuarantined,
    ObjectReset,
    SchemaTooNew,
    SlotOwned,
    StatementRefused,
    StorageFull,
)
from actors.runtime.quarantine import CRASHES_MAX, FAILURES_MAX, STRIKES_KEPT_S
from actors.runtime.running import ACTIVATION
from actors.runtime.trouble import METHODS_MAX, TEXT_CHARS_MAX
from tests.objects import Unprintable
from tests.unit.quarantine.world import BAD, GOOD, World


def test_a_method_that_always_crashes_is_quarantined(world: World) -> None:
    for number in range(1, CRASHES_MAX):
        assert world.crash().crashes == number
        assert world.host.is_suspect(BAD)
        assert world.host.refusal(BAD) is None
    world.crash()
    refusal = world.host.refusal(BAD)
    assert isinstance(refusal, ObjectQuarantined)
    assert refusal.object_key == str(BAD)
    assert refusal.since == world.clock.now()
    assert refusal.reason == f"its crash ended the host's process {CRASHES_MAX} times in a row"
    assert not refusal.retryable
    assert not world.host.is_suspect(GOOD)
    assert world.host.refusal(GOOD) is None


def test_successes_of_other_methods_do_not_save_a_method_that_always_crashes(world: World) -> None:
    for _ in range(CRASHES_MAX):
        world.crash()
        world.host.activated(BAD)
        world.host.succeeded(BAD, "append")
    assert world.host.refusal(BAD) is not None


def test_a_success_of_the_method_strikes_out_its_crashes_and_leaves_nothing(world: World) -> None:
    for _ in range(CRASHES_MAX * 3):
        world.crash(method="append", times=CRASHES_MAX - 1)
        world.host.succeeded(BAD, "append")
        assert not world.host.is_suspect(BAD)
        assert world.files == []
        assert not world.restart().is_suspect(BAD)


def test_two_methods_that_crash_now_and_then_do_not_add_up(world: World) -> None:
    world.crash(method="one", times=CRASHES_MAX - 1)
    world.crash(method="two", times=CRASHES_MAX - 1)
    assert world.host.refusal(BAD) is None
    world.host.succeeded(BAD, "one")
    assert world.crash(method="two").quarantined_at is not None


def test_an_activation_that_crashes_is_quarantined_whatever_methods_did(world: World) -> None:
    world.crash(method=ACTIVATION, times=CRASHES_MAX - 1)
    world.host.succeeded(BAD, "append")
    assert world.crash(method=ACTIVATION).quarantined_at is not None


def test_an_activation_that_succeeds_strikes_out_those_that_crashed(world: World) -> None:
    world.crash(method=ACTIVATION, times=CRASHES_MAX - 1)
    world.host.activated(BAD)
    assert world.files == []


def test_a_method_with_an_absurd_name_is_counted_and_cleared_as_any_other(world: World) -> None:
    method = "m" * 10_000
    world.crash(method=method)
    world.host.succeeded(BAD, method)
    assert not world.host.is_suspect(BAD)
    assert world.crash(method=method, times=CRASHES_MAX).quarantined_at is not None


def test_strikes_of_many_methods_stay_few(world: World) -> None:
    for number in range(METHODS_MAX + 5):
        trouble = world.host.crashed(BAD, f"m{number}")
    assert [strikes.method for strikes in trouble.strikes] == [f"m{number}" for number in range(5, METHODS_MAX + 5)]
    assert world.restart().known(BAD) == trouble


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, CRASHES_MAX - 1), st.booleans(), st.floats(0, STRIKES_KEPT_S)),
        max_size=12,
    )
)
def test_an_object_whose_kills_are_followed_by_a_success_is_never_quarantined(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[str, int, bool, float]]
) -> None:
    world = World(tmp_path_factory.mktemp("kills") / "objects")
    for method, times, restarted, pause_s in kills:
        for _ in range(times):
            assert world.restart().refusal(BAD) is None
            world.host.crashed(BAD, method)
            world.clock.advance(pause_s)
        if restarted:
            world.restart()
        assert world.host.refusal(BAD) is None
        world.host.activated(BAD)
        world.host.succeeded(BAD, method)
    assert not world.restart().is_suspect(BAD)
    assert world.files == []


@given(st.lists(st.lists(st.sampled_from(["restart", "activated", "other", "neighbour"]), max_size=4), min_size=3))
def test_a_method_that_always_crashes_is_quarantined_whatever_happens_between(
    tmp_path_factory: pytest.TempPathFactory, between: list[list[str]]
) -> None:
    world = World(tmp_path_factory.mktemp("always") / "objects")
    for happenings in between[:CRASHES_MAX]:
        world.crash()
        for what in happenings:
            match what:
                case "restart":
                    world.restart()
                case "activated":
                    world.host.activated(BAD)
                case "other":
                    world.host.succeeded(BAD, "append")
                case _:
                    world.host.succeeded(GOOD, "crash")
    assert world.restart().refusal(BAD) is not None


def test_an_object_that_fails_activation_again_and_again_is_quarantined(world: World) -> None:
    world.fail(times=FAILURES_MAX - 1)
    assert world.host.refusal(BAD) is None
    world.fail()
    refusal = world.host.refusal(BAD)
    assert refusal is not None
    assert refusal.reason == f"its activation failed {FAILURES_MAX} times in a row: ValueError: this can't start"


def test_failures_are_counted_across_restarts(world: World) -> None:
    for _ in range(FAILURES_MAX):
        world.fail()
        world.restart()
    assert world.host.refusal(BAD) is not None


def test_a_success_between_failures_begins_a_new_row(world: World) -> None:
    world.fail(times=FAILURES_MAX - 1)
    world.host.activated(BAD)
    assert world.files == []
    world.fail(times=FAILURES_MAX - 1)
    assert world.host.refusal(BAD) is None


def test_an_activation_leaves_what_methods_did(world: World) -> None:
    world.crash()
    world.fail()
    world.host.activated(BAD)
    held = world.restart().known(BAD)
    assert held is not None
    assert (held.crashes, held.failures) == (1, 0)


@pytest.mark.parametrize(
    "error",
    [
        StorageFull(str(BAD), "open"),
        SlotOwned(str(BAD), "another process"),
        SchemaTooNew(str(BAD), "m2", "m1"),
        ObjectReset(str(BAD), "open failed: disk I/O error"),
        ObjectOverloaded(str(GOOD), "too many calls", 1.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_objects_fault_is_not_held_against_it(world: World, error: Exception) -> None:
    assert world.fail(error=error, times=FAILURES_MAX * 2) is None
    assert not world.host.is_suspect(BAD)
    assert world.files == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        InvalidArgument("title", 1, "is no text"),
        ObjectNotFound(str(BAD)),
        StatementRefused(str(BAD), "ATTACH", "one file"),
        Unprintable(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_objects_own_code_raises_is_held_against_it(world: World, error: Exception) -> None:
    world.fail(error=error, times=FAILURES_MAX)
    refusal = world.restart().refusal(BAD)
    assert refusal is not None
    assert type(error).__name__ in refusal.reason


def test_what_an_error_says_is_kept_short_and_can_be_shown(world: World) -> None:
    trouble = world.fail(error=ValueError("\ud83d\n" + "x" * 100_000), times=FAILURES_MAX)
    assert trouble is not None
    assert len(trouble.error) <= TEXT_CHARS_MAX + 10
    assert len(trouble.reason) <= TEXT_CHARS_MAX
    assert trouble.reason.encode()
    assert world.path().stat().st_size < 4096
