"""What are sessions, turns and messages called in OpenAI's API?

An id says whose it is: that of a response holds its session's and its turn's, that of an item its session's and its
message's. So nothing has to be looked up, and an id that is made up leads nowhere.

    conv_<session>                      a session
    resp_<session><turn>                a turn
    msg_<session>_<message>             a message of a session
    fc_<session>_<message>_<index>      a call of a tool in it
    fco_<session>_<message>             a tool's result
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from actors import ObjectNotFound

_CONVERSATION = re.compile(r"conv_([0-9a-f]{32})")
_RESPONSE = re.compile(r"resp_([0-9a-f]{32})([0-9a-f]{24})")
_ITEM = re.compile(r"(msg|fc|fco)_([0-9a-f]{32})_([0-9]{1,15})(?:_([0-9]{1,4}))?")

ItemKind = Literal["msg", "fc", "fco"]


class Place(NamedTuple):
    """Where an item stands in its conversation: in a message, as its nth call from 0."""

    message_id: int
    nth: int


def conversation_id(session_id: str) -> str:
    return f"conv_{session_id[1:]}"


def session_of(conversation_id: str) -> str:
    """
    Raises:
        ObjectNotFound: no conversation can have this id.
    """
    found = _CONVERSATION.fullmatch(conversation_id)
    if found is None:
        raise ObjectNotFound("conversation/?")
    return f"s{found[1]}"


def response_id(session_id: str, turn_id: str) -> str:
    return f"resp_{session_id[1:]}{turn_id[1:]}"


def turn_of(response_id: str) -> tuple[str, str]:
    """The session and the turn of a response.

    Raises:
        ObjectNotFound: no response can have this id.
    """
    found = _RESPONSE.fullmatch(response_id)
    if found is None:
        raise ObjectNotFound("response/?")
    return f"s{found[1]}", f"t{found[2]}"


def item_id(kind: ItemKind, session_id: str, message_id: int, index: int = 0) -> str:
    suffix = f"_{index}" if kind == "fc" else ""
    return f"{kind}_{session_id[1:]}_{message_id}{suffix}"


def place_of(item_id: str, session_id: str) -> Place:
    """
    Raises:
        ObjectNotFound: no item of this session can have this id.
    """
    found = _ITEM.fullmatch(item_id)
    if found is None or f"s{found[2]}" != session_id or (found[1] == "fc") != (found[4] is not None):
        raise ObjectNotFound("item/?")
    return Place(int(found[3]), int(found[4] or 0))
