"""Who is listed, let go and forgotten?"""

from __future__ import annotations

from actors.runtime.object_id import ObjectId
from actors.runtime.quarantine import CRASHES_MAX, FAILURES_MAX, Quarantine
from tests.unit.quarantine.world import BAD, GOOD, SLOTS, World


def test_a_released_object_may_try_again_and_its_record_is_gone(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    assert world.host.release(BAD)
    assert world.host.refusal(BAD) is None
    assert not world.host.is_suspect(BAD)
    assert world.files == []
    assert world.restart().refusal(BAD) is None
    assert world.host.crashed(BAD, "crash").crashes == 1


def test_releasing_what_is_not_quarantined_says_so(world: World) -> None:
    assert not world.host.release(BAD)
    world.crash()
    assert not world.host.release(BAD)
    assert not world.host.is_suspect(BAD)
    assert world.files == []


def test_a_host_that_loaded_nothing_finds_the_record_of_the_object_it_is_asked_for(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    alone = Quarantine(world.objects_dir, SLOTS, code="code-1", clock=world.clock)
    assert alone.known(GOOD) is None
    held = alone.known(BAD)
    assert held is not None
    assert held.quarantined_at is not None
    assert alone.refusal(BAD) is not None
    assert Quarantine(world.objects_dir, SLOTS, code="code-1", clock=world.clock).release(BAD)
    assert world.files == []


def test_the_quarantined_are_listed_the_longest_first_and_suspects_are_not(world: World) -> None:
    names = ["c", "a", "b"]
    for name in names:
        world.crash(ObjectId("Notebook", "acme", name), times=CRASHES_MAX)
        world.clock.advance(1)
    world.crash(GOOD)
    assert [held.id.name for held in world.restart().quarantined()] == names


def test_a_success_that_was_under_way_does_not_lift_a_quarantine(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    world.host.succeeded(BAD, "crash")
    world.host.activated(BAD)
    assert world.restart().refusal(BAD) is not None


def test_an_object_that_made_no_trouble_takes_no_memory_and_no_disk(world: World) -> None:
    world.host.activated(GOOD)
    world.host.succeeded(GOOD, "append")
    assert world.host.known(GOOD) is None
    assert not world.host.is_suspect(GOOD)
    assert world.files == []


def test_of_too_many_the_ones_that_did_least_and_longest_ago_are_forgotten(world: World) -> None:
    world.restart(troubled_max=4)
    ids = [ObjectId("Notebook", "acme", f"n{number}") for number in range(8)]
    for _ in range(CRASHES_MAX):
        world.host.crashed(ids[0], "crash")
    world.fail(ids[1], times=FAILURES_MAX)
    for number in range(2, 8):
        world.clock.advance(1)
        world.fail(ids[number])
    assert [held.id for held in world.host.quarantined()] == ids[:2]
    assert [object_id for object_id in ids if world.host.is_suspect(object_id)] == [*ids[:2], *ids[6:]]
    assert len(world.files) == 4
    for number in range(2, 5):
        world.clock.advance(1)
        for _ in range(CRASHES_MAX):
            world.host.crashed(ids[number], "crash")
    assert world.host.refusal(ids[0]) is not None
    assert world.host.refusal(ids[1]) is None
    world.restart(troubled_max=2)
    assert len(world.files) == 2
