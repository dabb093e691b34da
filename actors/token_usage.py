"""How many tokens has a tenant used, by day and model?"""

from __future__ import annotations

import datetime
from typing import TypedDict

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import DurableObject, exactly_once, read

#: Of a tenant's usage, among its objects of the class.
USAGE_NAME = "tokens"
DAYS_KEPT = 400

migrations = Migrations("usage")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE usage (day TEXT NOT NULL, model TEXT NOT NULL, turns INTEGER NOT NULL,"
        " input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, PRIMARY KEY (day, model)) WITHOUT ROWID"
    )


class DayUsage(TypedDict):
    """One day (UTC, ISO 8601) of one model."""

    day: str
    model: str
    turns: int
    input_tokens: int
    output_tokens: int


class TokenUsage(DurableObject):
    migrations = migrations

    @exactly_once
    def add(self, at: float, model: str, input_tokens: int, output_tokens: int) -> None:
        """Counts one turn. The request id is to be the turn's, so that none counts twice."""
        day = datetime.datetime.fromtimestamp(at, datetime.UTC).date()
        self.storage.sql(
            "INSERT INTO usage VALUES (?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET turns = turns + 1,"
            " input_tokens = input_tokens + excluded.input_tokens,"
            " output_tokens = output_tokens + excluded.output_tokens",
            day.isoformat(),
            model,
            input_tokens,
            output_tokens,
        )
        oldest = day - datetime.timedelta(days=DAYS_KEPT)
        self.storage.sql("DELETE FROM usage WHERE day < ?", oldest.isoformat())

    @read
    def days(self, first: str, last: str) -> list[DayUsage]:
        """Of the days `first` to `last`, both included, oldest first; models in the order of their names."""
        rows = self.storage.sql("SELECT * FROM usage WHERE day >= ? AND day <= ? ORDER BY day, model", first, last)
        return [
            {"day": day, "model": model, "turns": turns, "input_tokens": asked, "output_tokens": answered}
            for day, model, turns, asked, answered in rows
        ]
