"""How many turns has a tenant, and each of its clients, in flight?

Whoever runs a turn holds a lease on it, from before the turn is begun until it has ended, and renews it all the while.
A lease that is not renewed lapses: its holder is lost. Its turn is still known for a while, so that the one who takes
the turn over holds the lease for the same client.
"""

from __future__ import annotations

from typing import NamedTuple

from actors.runtime import Clock, Storage

#: Three times as long as it takes to be renewed.
LEASE_S = 30.0
#: How long it is known whose a turn was whose lease has lapsed.
LAPSED_KEPT_S = 3_600.0
#: Turns end at any time.
RETRY_AFTER_S = 1.0


class Concurrency(NamedTuple):
    """Turns in flight at once; None: any number."""

    per_client: int | None
    per_tenant: int | None


class InFlight(NamedTuple):
    client: int
    tenant: int


class TurnLeases:
    """The leases of one tenant."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._sql = storage.sql
        self._clock = clock

    def tidy(self) -> None:
        """Removes what has lapsed long ago; where the clock was set back, no lease lasts longer by that."""
        now = self._clock.now()
        self._sql("DELETE FROM lease WHERE expires_at <= ?", now - LAPSED_KEPT_S)
        self._sql("UPDATE lease SET expires_at = ? WHERE expires_at > ?", now + LEASE_S, now + LEASE_S)

    def in_flight(self, client: str, *, but: str = "") -> InFlight:
        """Of one client, and of all; without the turn `but`."""
        ((of_client, of_all),) = self._sql(
            "SELECT ifnull(sum(client = ?), 0), count(*) FROM lease WHERE expires_at > ? AND turn != ?",
            client,
            self._clock.now(),
            but,
        )
        return InFlight(of_client, of_all)

    def take(self, turn_id: str, client: str, holder: str) -> None:
        """Leases a turn that is about to begin."""
        self._put(turn_id, client, holder)
        self._sql("UPDATE lease SET client = ? WHERE turn = ?", client, turn_id)

    def renew(self, turn_id: str, holder: str) -> None:
        """Whoever runs the turn holds its lease, whether or not another did, and however many there are."""
        self._put(turn_id, "", holder)

    def _put(self, turn_id: str, client: str, holder: str) -> None:
        self._sql(
            "INSERT INTO lease VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET holder = excluded.holder,"
            " expires_at = excluded.expires_at",
            turn_id,
            client,
            holder,
            self._clock.now() + LEASE_S,
        )

    def release(self, turn_id: str, holder: str) -> None:
        """The turn has ended; unless another has taken it over."""
        self._sql("DELETE FROM lease WHERE turn = ? AND holder = ?", turn_id, holder)
