"""How is a request done once, however often it comes?

Its id and result are stored in the turn's own transaction, and a repeat is answered from there.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.runtime.call import RETURNED, Reply
from actors.runtime.errors import RequestReused
from actors.runtime.schema import REQUESTS_TABLE
from actors.runtime.storage import Storage

#: How long a repeated request is recognised. Longer than any stub keeps retrying, by far.
REQUESTS_KEPT_S = 86_400.0
#: Expired requests are removed a few with each new one, so that no turn pays for a day's worth.
_PRUNED_PER_TURN = 4

_SELECT = f"SELECT fingerprint, result FROM {REQUESTS_TABLE} WHERE request_id = ?"  # noqa: S608  a constant, as below
_INSERT = f"INSERT INTO {REQUESTS_TABLE} VALUES (?, ?, ?, ?)"  # noqa: S608
_PRUNE = (
    f"DELETE FROM {REQUESTS_TABLE} WHERE request_id IN"  # noqa: S608
    f" (SELECT request_id FROM {REQUESTS_TABLE} WHERE at < ? LIMIT {_PRUNED_PER_TURN})"
)


def answer_once(
    object_key: str, storage: Storage, request_id: str, fingerprint: bytes, now: float, invoke: Callable[[], Reply]
) -> Reply:
    """The recorded reply to the request, or that of `invoke`, recorded.

    Args:
        object_key: for errors.
        storage: of the object, in a transaction.
        request_id: the caller's.
        fingerprint: of the method and its arguments.
        now: seconds since 1970.
        invoke: runs the method.

    Raises:
        RequestReused: the request id was used with another method or other arguments.
    """
    seen = storage.own_sql(_SELECT, request_id)
    if seen:
        if seen[0][0] != fingerprint:
            raise RequestReused(object_key, request_id)
        return RETURNED, seen[0][1]
    reply = invoke()
    storage.own_sql(_PRUNE, now - REQUESTS_KEPT_S)
    storage.own_sql(_INSERT, request_id, fingerprint, reply[1], now)
    return reply
