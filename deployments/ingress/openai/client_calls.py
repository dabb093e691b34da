"""Which calls of a client's functions wait in a session, and what does a turn that answers them begin with?

The model calls functions that a client runs itself, and the turn ends. The next turn of the session may bring what came
of them: a result for each call, by its id. A call waits until something follows its answer, or until it has a result
that the model was told: one that it was not told, since its turn came to nothing, gives way to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from actors.message import FOR_CLIENT, Message, NewMessage
from actors.turn import FINAL, ClientCall, TurnInfo
from deployments.errors import TurnConflict
from deployments.ingress.openai import items
from deployments.ingress.openai.errors import Refused
from deployments.ingress.openai.tools import TOOLS_MAX
from deployments.ingress.services import Services


class Beginning(NamedTuple):
    """A turn's message, those that lead to it, and the call that the message is the result of, if it is one."""

    message: str
    leading: tuple[NewMessage, ...]
    result_of: ClientCall | None


def beginning(given: Sequence[NewMessage], waiting: Mapping[str, str], field: str) -> Beginning:
    """How a turn begins to which these messages were given, the last of them the user's or a result.

    Args:
        waiting: the names of the functions whose calls wait for their results, by the calls' ids.

    Raises:
        Refused: a result whose call does not wait for it, or a call that is left without one.
    """
    messages = items.answering(given, waiting, field)
    last = messages[-1]
    result_of: ClientCall | None = None
    if last["role"] == "tool":
        missing = next(iter(items.waiting(messages, waiting)), None)
        if missing is not None:
            raise Refused(f"No tool output found for function call {missing}.", field)
        result_of = {"id": last["data"]["tool_call_id"], "name": last["data"]["name"]}
    return Beginning(last["content"], tuple(messages[:-1]), result_of)


async def waiting_in(services: Services, tenant: str, session_id: str, turn_id: str) -> dict[str, str]:
    """The calls that wait at the end of a session, before a turn that may have begun in it; as in `beginning`."""
    found = await services.sessions.listed(tenant, session_id, limit=2 * TOOLS_MAX, after=None, newest_first=True)
    before = takewhile(lambda one: (one["data"] or {}).get("turn_id") != turn_id, reversed(found["messages"]))
    messages: list[Message] = list(before)
    if _is_result(messages):
        turn = await newest_turn(services, tenant, session_id)
        if turn is None or turn["status"] in FINAL or turn["id"] == turn_id:
            messages = _without_untold(messages)
    return items.waiting(messages)


def _is_result(messages: Sequence[Message]) -> bool:
    """They end with what came of a call, and with no answer to it."""
    return bool(messages) and messages[-1]["role"] == "tool" and FOR_CLIENT in (messages[-1]["data"] or {})


def _without_untold(messages: Sequence[Message]) -> list[Message]:
    """The messages without the results at their end that came with a turn, which came to nothing.

    Those that came with none were added to be told with the next, and wait for nothing.
    """
    kept, results = list(messages), list[Message]()
    while _is_result(kept):
        results.append(kept.pop())
    return kept + [one for one in reversed(results) if "turn_id" not in (one["data"] or {})]


async def turn_to_follow(services: Services, tenant: str, session_id: str, turn_id: str) -> str | None:
    """The turn that one with results has to come right behind, None if it is to be the session's first.

    Raises:
        TurnConflict: an answer is under way; behind it the results would be of calls that wait no more.
    """
    newest = await newest_turn(services, tenant, session_id)
    if newest is None:
        return None
    if newest["id"] != turn_id and newest["status"] not in FINAL:
        raise TurnConflict
    return newest["id"]


async def newest_turn(services: Services, tenant: str, session_id: str) -> TurnInfo | None:
    turns = (await services.turns.page(tenant, session_id, limit=1, before=None))["turns"]
    return turns[0] if turns else None
