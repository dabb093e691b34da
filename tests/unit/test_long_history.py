"""Is a model told of a long conversation what belongs to every turn, and a reader what was left out?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import turn_claims
from actors.message import NewMessage
from tests.unit.handles import EchoModel
from tests.unit.talk import Talk, question, talk_at


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    monkeypatch.setattr(turn_claims, "HISTORY_MESSAGES_MAX", 3)
    with talk_at(tmp_path) as talk:
        yield talk


def said_in(turns: int) -> list[NewMessage]:
    said: list[NewMessage] = []
    for number in range(1, turns + 1):
        said += [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}!" * 30}]
    return said


@pytest.mark.parametrize(
    ("leading", "turns", "told", "dropped"),
    [
        # Of the page's three messages the first is the end of a turn.
        (["Rhyme."], 5, ["5?"], (4, 8)),
        (["Rhyme.", "In Latin."], 1, ["1?"], (0, 0)),
        (["Rhyme."] * 4, 0, [], (0, 0)),
        ([], 1, ["1?"], (0, 0)),
        ([], 2, ["2?"], (1, 2)),
    ],
)
async def test_instructions_stay_and_older_turns_than_a_runner_gets_are_told_as_dropped(
    talk: Talk, leading: list[str], turns: int, told: list[str], dropped: tuple[int, int]
) -> None:
    session_id = await talk.new_session()
    instructions: list[NewMessage] = [{"role": "system", "content": text} for text in leading]
    await talk.sessions.extend("acme", session_id, [*instructions, *said_in(turns)])
    model = EchoModel("Yes")
    events = await talk.answer(talk.replica(model), question(session_id=session_id, retrieve=False))
    (request,) = model.requests
    assert [message.content for message in request.messages if message.role == "system"][1:] == leading
    assert [message.content for message in request.messages if message.role == "user"] == [*told, "Why?"]
    of_dropped = events[0]["data"]["dropped"]
    assert (of_dropped["turns"], of_dropped["messages"]) == dropped
    # As an estimate from the bytes has it, with what a template adds to each message.
    assert of_dropped["tokens"] == (dropped[0] * (2 + 60) // 3 + 9 * dropped[1])


async def test_what_the_system_says_later_is_dropped_with_its_turn(talk: Talk) -> None:
    session_id = await talk.new_session()
    later: NewMessage = {"role": "system", "content": "Not now."}
    await talk.sessions.extend("acme", session_id, [*said_in(1), later, *said_in(1)])
    model = EchoModel("Yes")
    events = await talk.answer(talk.replica(model), question(session_id=session_id, retrieve=False))
    assert [message.role for message in model.requests[0].messages] == ["system", "user", "assistant", "user"]
    assert (events[0]["data"]["dropped"]["turns"], events[0]["data"]["dropped"]["messages"]) == (1, 3)


async def test_what_had_to_be_dropped_of_the_newest_turns_counts_with_the_older_ones(talk: Talk) -> None:
    session_id = await talk.new_session("tight")
    long: list[NewMessage] = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "Yes"}]
    await talk.sessions.extend("tight", session_id, [*said_in(3), *long])
    asked = question(tenant="tight", session_id=session_id, retrieve=False)
    events = await talk.answer(talk.replica(EchoModel("Yes")), asked)
    assert (events[0]["data"]["dropped"]["turns"], events[0]["data"]["dropped"]["messages"]) == (4, 8)
