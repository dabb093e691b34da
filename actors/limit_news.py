"""What must every process that lets clients in hear of at once?

Those processes remember which clients can't pay. When an administrator fills a bucket, or changes limits, that is told
here, and each of them hears of it in its long poll. `heard` returns when all have, so that who made the change can be
told that it holds everywhere.

A reader counts for `LEASE_S` after each poll: it must not act on what it remembers once its last poll that was answered
was sent longer ago than that. So nobody acts on old news after `heard`: who has not heard can't be trusting its memory
any more. It keeps the last `KEPT_MAX` pieces of news; who has missed some is told so, and forgets everything.

It also knows which policies each tenant has, for buckets that nobody asks any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from typing_extensions import TypedDict

from actors.news import News
from actors.runtime import DurableObject, idempotent, interleaved, read

#: The service's own; no tenant can be named so.
NEWS_TENANT: Final = "_service"
NEWS_NAME: Final = "limits"
KEPT_MAX: Final = 1_000
READERS_MAX: Final = 10_000
#: Shorter than whoever looks after objects waits for one to be still (5 s).
POLL_WAIT_MAX_S: Final = 2.0
LEASE_S: Final = 5.0

migrations = Migrations("limit_news")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE news (number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, client TEXT NOT NULL)"
    )
    database.execute("CREATE TABLE reader (name TEXT PRIMARY KEY) WITHOUT ROWID")


@migrations()
def keep_policies(database: Database) -> None:
    database.execute("CREATE TABLE policy (tenant TEXT, name TEXT, PRIMARY KEY (tenant, name)) WITHOUT ROWID")


class Told(TypedDict):
    """A bucket that was filled. Without a tenant: the configuration may have changed."""

    tenant: str
    client: str


class NewsPage(TypedDict):
    """What a reader has not heard yet. `missed`: there was more, which is not kept any more."""

    number: int
    told: list[Told]
    missed: bool


class LimitNews(DurableObject):
    migrations = migrations

    def start(self) -> None:
        self._news = News()
        #: What each reader has heard, and when it last polled. Those of an earlier instance may be there, and deaf.
        self._heard: dict[str, tuple[int, float]] = {
            name: (-1, self.clock.monotonic()) for (name,) in self.storage.sql("SELECT name FROM reader")
        }

    @idempotent
    @interleaved
    async def poll(self, reader: str, after: int | None, wait_s: float = POLL_WAIT_MAX_S) -> NewsPage:
        """What was told after number `after`, as soon as there is anything; None: from now on."""
        newest = self._newest()
        # With no number it can't have heard of anything that is told from here on, and knows nothing older.
        heard = newest if after is None else after
        self._note(reader, min(heard, newest))
        self._news.tell()  # to those who wait in `heard`
        if after is not None:
            await self._news.until(lambda: self._newest() > heard, min(wait_s, POLL_WAIT_MAX_S))
        rows = self.storage.sql("SELECT tenant, client FROM news WHERE number > ? ORDER BY number", heard)
        told: list[Told] = [{"tenant": tenant, "client": client} for tenant, client in rows]
        newest = self._newest()
        # Fewer than it knows of: the object was deleted meanwhile, and began anew.
        return {"number": newest, "told": told, "missed": newest - heard != len(rows)}

    @idempotent
    def tell(self, tenant: str, client: str) -> int:
        """Has all readers hear of it. Returns its number, for `heard`. Told twice is no harm."""
        ((number,),) = self.storage.sql(
            "INSERT INTO news (tenant, client) VALUES (?, ?) RETURNING number", tenant, client
        )
        self.storage.sql("DELETE FROM news WHERE number <= ?", number - KEPT_MAX)
        self._news.tell()
        return int(number)

    @read
    @interleaved
    async def heard(self, number: int, wait_s: float = POLL_WAIT_MAX_S) -> bool:
        """Whether every reader that is there has heard of it; waits for them for a while."""
        await self._news.until(lambda: not self._deaf(number), min(wait_s, POLL_WAIT_MAX_S))
        return not self._deaf(number)

    @idempotent
    def know(self, policies: Mapping[str, Sequence[str]]) -> None:
        """What the policies of these tenants are called now. Of others it keeps what it was told before."""
        for tenant, names in policies.items():
            self.storage.sql("DELETE FROM policy WHERE tenant = ?", tenant)
            self.storage.sql_many("INSERT INTO policy (tenant, name) VALUES (?, ?)", [(tenant, name) for name in names])

    @read
    def policies(self, tenant: str) -> list[str]:
        """The names of the tenant's policies; none where nobody has said."""
        return [name for (name,) in self.storage.sql("SELECT name FROM policy WHERE tenant = ?", tenant)]

    def _deaf(self, number: int) -> list[str]:
        now_s = self.clock.monotonic()
        return [name for name, (heard, at_s) in self._heard.items() if heard < number and now_s - at_s <= LEASE_S]

    def _note(self, reader: str, heard: int) -> None:
        now_s = self.clock.monotonic()
        if reader not in self._heard:
            gone = [name for name, (_, at_s) in self._heard.items() if now_s - at_s > LEASE_S]
            for name in gone:
                del self._heard[name]
            self.storage.sql_many("DELETE FROM reader WHERE name = ?", [(name,) for name in gone])
            if len(self._heard) < READERS_MAX:
                self.storage.sql("INSERT INTO reader (name) VALUES (?) ON CONFLICT DO NOTHING", reader)
        self._heard[reader] = (heard, now_s)

    def _newest(self) -> int:
        ((newest,),) = self.storage.sql("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'news'")
        return int(newest)
