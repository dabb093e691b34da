"""Is a session that a question made found in its tenant's listing, also where nobody lived to enter it?"""

from __future__ import annotations

import pytest

from actors import ChatSession, Directory
from actors.directory import DIRECTORY_NAME
from actors.runtime.namespace import Stub
from actors.session_row import LISTED_WITHIN_S
from actors.testing import Lab
from actors.usage_outbox import AGAIN_AFTER_S
from tests.turns import asked
from tests.unit.objects_fixtures import refusing


async def _opened(lab: Lab, ttl_s: float | None) -> Stub[ChatSession]:
    """A session, and the caller lost before it could enter it."""
    session = lab.get(ChatSession, "acme", "s1")
    await session.open(asked("t1"), "r1", ttl_s=ttl_s)
    return session


async def _listed(lab: Lab) -> list[str]:
    page = await lab.get(Directory, "acme", DIRECTORY_NAME).page()
    return [session["id"] for session in page["sessions"]]


@pytest.mark.parametrize("ttl_s", [None, 3600.0])
async def test_a_session_that_nobody_entered_enters_itself_after_a_while(lab: Lab, ttl_s: float | None) -> None:
    session = await _opened(lab, ttl_s)
    await lab.advance(LISTED_WITHIN_S - 1)
    assert await _listed(lab) == []

    await lab.advance(1)

    assert await _listed(lab) == ["s1"]
    page = await lab.get(Directory, "acme", DIRECTORY_NAME).page()
    assert page["sessions"] == [await session.metadata()]


async def test_one_that_can_not_enter_itself_tries_again_and_its_turns_do_not_wait_for_that(
    lab: Lab,
) -> None:
    session = await _opened(lab, None)
    with refusing(lab._running, Directory, "put"):
        await lab.advance(LISTED_WITHIN_S)
    assert (await session.turn("t1"))["status"] == "queued"  # its runner was lost, and another may have it
    assert await _listed(lab) == []

    await lab.advance(AGAIN_AFTER_S)

    assert await _listed(lab) == ["s1"]


async def test_one_that_was_entered_does_not_do_it_again(lab: Lab) -> None:
    session = await _opened(lab, None)
    await lab.advance(LISTED_WITHIN_S)
    await lab.get(Directory, "acme", DIRECTORY_NAME).remove("s1")

    await session.cancel("t1")
    await lab.advance(LISTED_WITHIN_S + AGAIN_AFTER_S)

    assert await _listed(lab) == []


async def test_one_whose_runner_knows_that_it_was_entered_does_not_do_it_again(lab: Lab) -> None:
    session = await _opened(lab, None)
    await session.finish("t1", 1, 0, [], "completed", is_listed=True)

    await lab.advance(LISTED_WITHIN_S + AGAIN_AFTER_S)

    assert await _listed(lab) == []
    # A repeat says the same, or less, and harms nothing.
    await session.finish("t1", 1, 0, [], "completed")
    await lab.advance(LISTED_WITHIN_S + AGAIN_AFTER_S)
    assert await _listed(lab) == []


async def test_whoever_runs_a_turn_does_not_wait_for_the_directory(lab: Lab) -> None:
    session = await _opened(lab, None)
    for _ in range(4):
        await lab.advance(LISTED_WITHIN_S / 2)
        await session.record("t1", 1, 0, [])
    assert await _listed(lab) == []

    await session.finish("t1", 1, 0, [], "completed")
    await lab.advance(LISTED_WITHIN_S)

    assert await _listed(lab) == ["s1"]
