"""Which tokens of a client's buckets are out on lease?

A process that lets the client in has them, spends them without asking, and gives back what it has left. A lease is
known until it is given back, or its time has passed and its bucket has been counted since. What comes back is believed
once, and never to be more than was given: nothing is minted by a call that is repeated, late, or about a lease that a
reset has dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from sqlite_utils import Database

from actors.bucket import Lease
from actors.runtime import Storage

#: From one bucket. There is one for each process that lets the client in, or a few; whoever comes then gets none.
LEASES_MAX: Final = 64


def create_table(database: Database) -> None:
    database.execute(
        "CREATE TABLE lease (id TEXT, policy TEXT, tokens REAL NOT NULL, until REAL NOT NULL,"
        " PRIMARY KEY (policy, id)) WITHOUT ROWID"
    )


class BucketLeases:
    """Those of one client, as they are stored, by policy and id."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._leases: dict[str, dict[str, Lease]] = {}
        for policy, lease_id, tokens, until in storage.sql("SELECT policy, id, tokens, until FROM lease"):
            self._leases.setdefault(policy, {})[lease_id] = Lease(tokens, until)

    def __bool__(self) -> bool:
        return bool(self._leases)

    @property
    def have_room(self) -> bool:
        return all(len(leases) < LEASES_MAX for leases in self._leases.values())

    def of(self, policy: str) -> Collection[Lease]:
        """Those of a bucket that have not ended, and may be those that have."""
        return self._leases[policy].values() if policy in self._leases else ()

    def grant(self, lease_id: str, policies: Sequence[str], lease: Lease) -> None:
        """Notes that so many tokens of each bucket are out."""
        self._storage.sql_many(
            "INSERT INTO lease (id, policy, tokens, until) VALUES (?, ?, ?, ?)",
            [(lease_id, policy, *lease) for policy in policies],
        )
        for policy in policies:
            self._leases.setdefault(policy, {})[lease_id] = lease

    def end(self, lease_id: str) -> dict[str, Lease]:
        """Forgets the lease. Returns what it was of each bucket; nothing if it is not known, or not any more."""
        ended = {policy: leases[lease_id] for policy, leases in self._leases.items() if lease_id in leases}
        for policy in ended:
            self._drop(policy, [lease_id])
        return ended

    def counted(self, policy: str, until: float) -> None:
        """The bucket has been counted up to then: leases that ended before make no difference any more."""
        over = [lease_id for lease_id, lease in self._leases.get(policy, {}).items() if lease.until <= until]
        if over:
            self._drop(policy, over)

    def _drop(self, policy: str, lease_ids: Sequence[str]) -> None:
        self._storage.sql_many(
            "DELETE FROM lease WHERE policy = ? AND id = ?", [(policy, lease_id) for lease_id in lease_ids]
        )
        for lease_id in lease_ids:
            del self._leases[policy][lease_id]
        if not self._leases[policy]:
            del self._leases[policy]
