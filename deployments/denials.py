"""Which clients can't pay now, as far as is known here?

A bucket only refills. So once its owner has said what it holds, that and what may have come since, with what others may
give back of their leases, is the most that it can hold, and a request that costs more is denied without asking. This is
exact: a request that could pay always gets to the owner. What makes a bucket hold more than that drops what is known of
it: a reset, and changed limits. Both come as news (`deployments.limit_changes`), and while it is not certain that news
would come, nothing is answered from here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from actors.bucket import RETRY_AFTER_MAX_S, RETRY_AFTER_MIN_S, Decision, Row
from deployments.quotas import RouteQuota

CLIENTS_MAX = 10_000
#: The owner may count by another clock, which is set right by up to 500 ppm while it runs.
CLOCK_DRIFT = 1e-3


class Denials:
    """What owners have said when they denied, for the clients that came last.

    Args:
        monotonic: seconds, of a clock that nobody sets.
        clients_max: beyond it the one that was not seen for longest is forgotten.
    """

    def __init__(self, monotonic: Callable[[], float], clients_max: int = CLIENTS_MAX) -> None:
        self._monotonic = monotonic
        self._clients_max = clients_max
        #: What each bucket of a client held at most, and when. Those of all routes: a denial of one leaves others' be.
        self._known: OrderedDict[tuple[str, str], dict[Row, tuple[float, float]]] = OrderedDict()
        self._certain_until_s = float("-inf")
        #: How often something was dropped: what was asked before that is not remembered after it.
        self._drops = 0

    def __len__(self) -> int:
        return len(self._known)

    def certain_until(self, until_s: float) -> None:
        """Until then, nothing can make a bucket hold more without `forget`, `forget_tenant` or `clear` being called."""
        self._certain_until_s = max(self._certain_until_s, until_s)

    def answer(self, tenant: str, client: str, quota: RouteQuota, cost: float) -> Decision | None:
        """The denial that the owner would give as well; None if it has to be asked."""
        known = self._known.get((tenant, client))
        if known is None:
            return None
        now_s = self._monotonic()
        if now_s > self._certain_until_s:
            return None
        remaining: list[float] = []
        waits: list[float] = []
        denied = False
        for row in quota.rows:
            held = known.get(row)
            if held is None:
                return None
            tokens, at_s = held
            _, rate, capacity, shadow = row
            tokens = min(capacity, tokens + (now_s - at_s) * (1 + CLOCK_DRIFT) * rate)
            remaining.append(tokens)
            if cost <= tokens:
                waits.append(0.0)
                continue
            denied = denied or not shadow
            wait_s = (cost - tokens) / rate if rate > 0 and cost <= capacity else RETRY_AFTER_MAX_S
            waits.append(min(RETRY_AFTER_MAX_S, max(RETRY_AFTER_MIN_S, wait_s)))
        if not denied:
            return None
        self._known.move_to_end((tenant, client))
        return Decision(False, tuple(remaining), tuple(waits))

    def before_asking(self) -> tuple[float, int]:
        """To be given to `remember` with what the owner says."""
        return self._monotonic(), self._drops

    def remember(
        self,
        tenant: str,
        client: str,
        quota: RouteQuota,
        decision: Decision,
        asked: tuple[float, int],
        out: Sequence[float] | None = None,
    ) -> None:
        """Notes what the owner said, if nothing was dropped since it was asked. `out`: what may be given back."""
        at_s, drops = asked
        if drops != self._drops:
            return
        most = decision.remaining if out is None else map(sum, zip(decision.remaining, out, strict=True))
        known = self._known.setdefault((tenant, client), {})
        for row, tokens in zip(quota.rows, most, strict=True):
            known[row] = (tokens, at_s)
        self._known.move_to_end((tenant, client))
        if len(self._known) > self._clients_max:
            self._known.popitem(last=False)

    def forget(self, tenant: str, client: str) -> None:
        """The client's buckets may hold more."""
        self._drops += 1
        self._known.pop((tenant, client), None)

    def clear(self) -> None:
        """Any bucket may hold more."""
        self._drops += 1
        self._known.clear()
