"""Which requests can be let through without asking the owner of their client's buckets?

Those of a client that has asked a moment ago, where all policies of the route allow a lease: with the owner's answer
come some tokens, which are debited there before any is spent here. Requests are paid from them for as long as the lease
lasts; what is left then is given back. So no more is let through than the buckets have paid for, whatever is lost:
what this process held when it was killed, or what was given back in vain, is nobody's any more.

A reset drops the leases of a client, and changed limits end all of them. Both come as news, as for
`deployments.denials`, and while it is not certain that news would come, nothing is spent here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from actors.bucket import Decision, Row
from actors.token_bucket import Ended, Wanted
from deployments.quotas import RouteQuota

#: Clients whose last request is remembered, which are those that may have a lease.
CLIENTS_MAX = 10_000
#: Leases that wait to be given back. What does not find room is lost.
ENDED_MAX = 10_000

#: A client's leases differ by the policies that they pay for.
_Key: TypeAlias = tuple[str, str, tuple[Row, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What the owner is asked for beside the check itself."""

    key: _Key
    wanted: Wanted | None
    ended: Ended | None
    asked_s: float
    drops: int


@dataclass(kw_only=True, slots=True)
class _Held:
    """A lease, and what the owner's buckets held beside it at `at_s`."""

    id: str
    tokens: float
    leased: float
    at_s: float
    until_s: float
    beside: tuple[float, ...]


class Leases:
    """Those that this process holds.

    Args:
        monotonic: seconds, of a clock that nobody sets.
        new_id: makes a name that no other lease has.
        clients_max: beyond it the one that was not seen for longest is forgotten, and its lease ends.
    """

    def __init__(
        self, monotonic: Callable[[], float], new_id: Callable[[], str], clients_max: int = CLIENTS_MAX
    ) -> None:
        self._monotonic = monotonic
        self._new_id = new_id
        self._clients_max = clients_max
        #: When each client's last request came.
        self._seen_s: OrderedDict[_Key, float] = OrderedDict()
        self._held: dict[_Key, _Held] = {}
        self._asking: set[_Key] = set()
        self._ended: list[tuple[str, str, Ended]] = []
        self._certain_until_s = float("-inf")
        self._drops = 0

    def __len__(self) -> int:
        return len(self._held)

    def certain_until(self, until_s: float) -> None:
        """Until then, no bucket is filled and no limit changed without `forget` or `clear` being called."""
        self._certain_until_s = max(self._certain_until_s, until_s)

    def spend(self, tenant: str, client: str, quota: RouteQuota, cost: float) -> Decision | None:
        """The request is paid for from a lease; None: the owner has to be asked."""
        key = (tenant, client, quota.rows)
        held, now_s = self._held.get(key), self._monotonic()
        if held is None or not 0 <= cost <= held.tokens or now_s >= min(held.until_s, self._certain_until_s):
            return None
        held.tokens -= cost
        self._note(key, now_s)
        elapsed_s = now_s - held.at_s
        remaining = [
            min(capacity - held.leased, tokens + elapsed_s * rate) + held.tokens
            for (_, rate, capacity, _), tokens in zip(quota.rows, held.beside, strict=True)
        ]
        return Decision(True, tuple(remaining), (0.0,) * len(remaining))

    def ask(self, tenant: str, client: str, quota: RouteQuota) -> Asking:
        """Before the owner is asked; to be given to `asked` in any case. What the client had here has ended."""
        assert quota.lease is not None
        key, now_s = (tenant, client, quota.rows), self._monotonic()
        is_often = now_s - self._seen_s.get(key, float("-inf")) <= quota.lease.ttl_s
        wanted: Wanted | None = None
        ended: Ended | None = None
        if key not in self._asking:
            if (held := self._held.pop(key, None)) is not None:
                ended = Ended(held.id, held.tokens)
            if is_often and now_s < self._certain_until_s:
                wanted = Wanted(self._new_id(), quota.lease.tokens, quota.lease.ttl_s)
                self._asking.add(key)
        self._note(key, now_s)
        return Asking(key=key, wanted=wanted, ended=ended, asked_s=now_s, drops=self._drops)

    def asked(self, asking: Asking, decision: Decision | None, leased: float) -> None:
        """What the owner said. No decision: nothing was heard, and what it may have leased is to come back."""
        wanted, ended = asking.wanted, asking.ended
        if decision is None and ended is not None:
            self._end(asking.key, ended)
        if wanted is None:
            return
        self._asking.discard(asking.key)
        if decision is None:
            self._end(asking.key, Ended(wanted.id, wanted.tokens))
        if decision is None or not leased:
            return
        if asking.drops != self._drops or asking.key not in self._seen_s:
            self._end(asking.key, Ended(wanted.id, leased))
            return
        self._held[asking.key] = _Held(
            id=wanted.id,
            tokens=leased,
            leased=leased,
            at_s=asking.asked_s,
            until_s=asking.asked_s + wanted.ttl_s,
            beside=decision.remaining,
        )

    def due(self) -> list[tuple[str, str, Ended]]:
        """Tenant, client and lease of all that have ended since, to be given back."""
        now_s = self._monotonic()
        for key in [key for key, held in self._held.items() if now_s >= held.until_s]:
            self._release(key)
        due, self._ended = self._ended, []
        return due

    def forget(self, tenant: str, client: str) -> None:
        """The client's buckets are full, and know of no lease."""
        self._drops += 1
        for key in [key for key in self._held if key[:2] == (tenant, client)]:
            del self._held[key]

    def clear(self) -> None:
        """Limits may have changed."""
        self._drops += 1
        for key in list(self._held):
            self._release(key)

    def _note(self, key: _Key, now_s: float) -> None:
        self._seen_s[key] = now_s
        self._seen_s.move_to_end(key)
        if len(self._seen_s) > self._clients_max:
            forgotten, _ = self._seen_s.popitem(last=False)
            self._release(forgotten)

    def _release(self, key: _Key) -> None:
        if (held := self._held.pop(key, None)) is not None:
            self._end(key, Ended(held.id, held.tokens))

    def _end(self, key: _Key, ended: Ended) -> None:
        tenant, client, _ = key
        if ended.unspent and len(self._ended) < ENDED_MAX:
            self._ended.append((tenant, client, ended))
