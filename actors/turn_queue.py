"""Which turns have lost their runner, and wait for another?

Sessions offer here what nobody runs, and runners wait here for work. Taking a turn takes it off the queue: one whose
taker dies as well is offered again by its session. Nothing is lost with this queue but time.
"""

from __future__ import annotations

import asyncio
from typing import TypedDict

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import DurableObject, idempotent, interleaved

#: The queue is the service's own; no tenant can be named so.
QUEUE_TENANT = "_service"
QUEUE_NAME = "turns"
#: What does not fit is offered again.
WAITING_MAX = 10_000
#: Shorter than whoever looks after objects waits for one to be still (5 s).
TAKE_WAIT_MAX_S = 3.0

migrations = Migrations("turn_queue")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE turn (number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, session TEXT NOT NULL,"
        " turn TEXT NOT NULL, UNIQUE (tenant, session, turn))"
    )


class Orphan(TypedDict):
    """A turn that nobody runs."""

    tenant: str
    session_id: str
    turn_id: str


class TurnQueue(DurableObject):
    migrations = migrations

    def start(self) -> None:
        self._news = asyncio.Event()

    @idempotent
    def offer(self, tenant: str, session_id: str, turn_id: str) -> None:
        """Has a runner take the turn; one that waits already waits on."""
        self.storage.sql(
            "INSERT INTO turn (tenant, session, turn) SELECT ?, ?, ? WHERE (SELECT count(*) FROM turn) < ?"
            " ON CONFLICT DO NOTHING",
            tenant,
            session_id,
            turn_id,
            WAITING_MAX,
        )
        self._news.set()

    @interleaved
    async def take(self, wait_s: float = TAKE_WAIT_MAX_S) -> Orphan | None:
        """The turn that has waited longest; None if there is none for `wait_s`."""
        try:
            async with asyncio.timeout(min(wait_s, TAKE_WAIT_MAX_S)):
                while True:
                    rows = self.storage.sql(
                        "DELETE FROM turn WHERE number = (SELECT min(number) FROM turn) RETURNING tenant, session, turn"
                    )
                    if rows:
                        tenant, session_id, turn_id = rows[0]
                        return {"tenant": tenant, "session_id": session_id, "turn_id": turn_id}
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return None
