"""Do the ids of OpenAI's API lead back to what they stand for, and nowhere else?"""

from __future__ import annotations

import pytest

from actors import ObjectNotFound
from deployments.ingress.openai.ids import (
    ItemKind,
    Place,
    conversation_id,
    item_id,
    place_of,
    response_id,
    session_of,
    turn_of,
)

SESSION = "s" + "0123456789abcdef" * 2
OTHER = "s" + "f" * 32
TURN = "t" + "0123456789ab" * 2


def test_an_id_leads_back_to_what_it_stands_for() -> None:
    assert session_of(conversation_id(SESSION)) == SESSION
    assert turn_of(response_id(SESSION, TURN)) == (SESSION, TURN)
    places: list[tuple[ItemKind, Place]] = [("msg", Place(7, 0)), ("fc", Place(7, 3)), ("fco", Place(8, 0))]
    for kind, place in places:
        assert place_of(item_id(kind, SESSION, *place), SESSION) == place


@pytest.mark.parametrize(
    "made_up",
    ["", "conv_", SESSION, f"conv_{SESSION}", "conv_" + "g" * 32, "conv_" + "0" * 33, "conv_" + "0" * 32 + "\n"],
)
def test_no_conversation_has_an_id_that_was_made_up(made_up: str) -> None:
    with pytest.raises(ObjectNotFound):
        session_of(made_up)


@pytest.mark.parametrize("made_up", ["", "resp_", "resp_" + "0" * 55, "resp_" + "0" * 57, "resp_" + "A" * 56, TURN])
def test_no_response_has_an_id_that_was_made_up(made_up: str) -> None:
    with pytest.raises(ObjectNotFound):
        turn_of(made_up)


@pytest.mark.parametrize(
    "made_up",
    [
        "",
        "msg_1",
        item_id("msg", OTHER, 1),
        item_id("msg", SESSION, 1) + "_1",
        item_id("fc", SESSION, 1, 1).rpartition("_")[0],
        item_id("msg", SESSION, 1).replace("msg", "rs"),
        item_id("msg", SESSION, 10**16),
    ],
)
def test_no_item_of_a_conversation_has_an_id_that_was_made_up_or_is_anothers(made_up: str) -> None:
    with pytest.raises(ObjectNotFound):
        place_of(made_up, SESSION)
