"""Which tokens were used that the tenant's count does not know of yet?

What a turn has used is entered with its end, in one commit, and leaves when the count has it. The count knows a turn's
usage by the turn's id, so telling it again after a crash adds nothing.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from sqlite_utils import Database

from actors.runtime import Storage

#: Told in one go; more are told in the next.
TOLD_AT_ONCE_MAX = 100
#: A count that can't be told is told later, for as long as it takes.
AGAIN_AFTER_S = 30.0


def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE untold_usage (turn TEXT PRIMARY KEY, at REAL NOT NULL, model TEXT NOT NULL,"
        " input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, due_at REAL NOT NULL) WITHOUT ROWID"
    )


class Used(NamedTuple):
    """What one turn has used, and when it ended."""

    turn_id: str
    at: float
    model: str
    input_tokens: int
    output_tokens: int


class UsageOutbox:
    def __init__(self, storage: Storage) -> None:
        self._sql = storage.sql

    def put(self, used: Used) -> None:
        self._sql("INSERT INTO untold_usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", *used, used.at)

    def untold(self) -> list[Used]:
        """Some of what is in it, whether or not its time has come."""
        rows = self._sql(
            "SELECT turn, at, model, input_tokens, output_tokens FROM untold_usage ORDER BY due_at LIMIT ?",
            TOLD_AT_ONCE_MAX,
        )
        return [Used(*row) for row in rows]

    def next_due_at(self) -> float | None:
        ((due_at,),) = self._sql("SELECT min(due_at) FROM untold_usage")
        return cast("float | None", due_at)

    def told(self, turn_id: str) -> None:
        self._sql("DELETE FROM untold_usage WHERE turn = ?", turn_id)

    def put_off(self, now: float) -> None:
        self._sql("UPDATE untold_usage SET due_at = ?", now + AGAIN_AFTER_S)
