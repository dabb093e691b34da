"""How does a plain method run in the transaction that it shares with others?

The turns of an object that wait together are one group, with one transaction and one commit. Each but the first stands
behind a savepoint, so that one that raises undoes its own writes only. What `steps` is to async methods, this is to
plain ones.
"""

from __future__ import annotations

from actors.runtime import sqlite
from actors.runtime.author_code import AuthorCode
from actors.runtime.call import Reply, raised
from actors.runtime.errors import DurableError
from actors.runtime.object import DurableObject
from actors.runtime.steps import StorageLost
from actors.runtime.storage import Storage
from actors.runtime.turn import Turn


def run_in_group(
    object_key: str, code: AuthorCode, instance: DurableObject, turn: Turn, held: list[Turn]
) -> Reply | None:
    """Runs one turn, and adds it to those whose replies are held until the commit.

    Args:
        object_key: of the object.
        code: of its class.
        instance: the object.
        turn: to be run.
        held: the turns of the group so far, if any.

    Returns:
        What to reply at once, since the turn was undone and is in no group; else None.

    Raises:
        StorageLost: the transaction can't be used any more, and nothing of the group was kept.
    """
    storage = instance.storage
    try:
        if held:
            storage.savepoint()
        else:
            storage.begin()
    except (sqlite.Error, DurableError) as error:
        raise StorageLost(error) from error
    try:
        reply = code.call(instance, turn)
        if not storage.in_transaction:
            raise RuntimeError(f"{turn.method.name} ended the transaction that it ran in")
        if held:
            storage.release()
    except Exception as error:  # whatever the author's method raises goes to the caller
        meaning = storage.what_it_means(error)
        if meaning or not _undo(storage, grouped=bool(held)):
            raise StorageLost(meaning or error) from error
        reply = raised(object_key, error)
        if not held:
            return reply
        # It may tell of what earlier turns of the group wrote, so it waits for the commit as their replies do.
    turn.held = reply
    held.append(turn)
    return None


def _undo(storage: Storage, *, grouped: bool) -> bool:
    """Undoes one turn. False where the turn, or its error, had ended the group's transaction."""
    if not storage.in_transaction:
        return False
    try:
        if grouped:
            storage.rollback_to_savepoint()
        else:
            storage.rollback()
    except sqlite.Error:
        return False
    return True
