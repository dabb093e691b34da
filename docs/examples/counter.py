"""How is a durable class written, and used without a cluster? Run it twice: `python docs/examples/counter.py FOLDER`"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors import DurableObject, LocalBackend, exactly_once, read


class Counter(DurableObject):
    migrations = Migrations("counter")

    @staticmethod
    @migrations()
    def create_table(database: Database) -> None:
        database.execute("CREATE TABLE counter AS SELECT 0 AS value")

    @exactly_once  # what is repeated because its reply was lost counts once
    def add(self, amount: int) -> int:
        return int(self.storage.sql("UPDATE counter SET value = value + ? RETURNING value", amount)[0][0])

    @read
    def value(self) -> int:
        return int(self.storage.sql("SELECT value FROM counter")[0][0])


async def visit(objects: LocalBackend) -> None:
    visits = objects.namespace(Counter).get("acme", "visits")
    print(f"found {await visits.value()}, added:", await asyncio.gather(*[visits.add(1) for _ in range(5)]))
    objects.close()


folder = sys.argv[1] if len(sys.argv) == 2 else sys.exit("usage: counter.py FOLDER")
asyncio.run(visit(LocalBackend(Path(folder), [Counter])))
