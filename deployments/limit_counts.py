"""How often were clients denied, would they have been, or could nobody be asked?

Counted in memory and told once in a while: a metric costs more than the request that is denied, and a line in the log
for each would be a flood of its own. What is counted in the last moments of a process that is killed is lost.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Literal

logger = logging.getLogger("mobula.limits")

#: denied: by a policy. shadow: a policy in shadow would have denied it. let_through, refused: the bucket, or what the
#: tenant uses of tokens and turns, could not be reached, and the tenant's limits fail open, or closed.
Outcome = Literal["denied", "shadow", "let_through", "refused"]
TELL_EVERY_S = 10.0
#: What stands for the policy where it was the tenant's usage that could not be reached.
BUDGETS = "budgets"
#: Values of a metric's label. The tenants beyond it are counted together.
TENANTS_MAX = 100
OTHERS = "(others)"


class LimitCounts:
    """
    Args:
        tell: adds to a metric: outcome, tenant, policy ("" where it is none's), how many.
    """

    def __init__(self, tell: Callable[[Outcome, str, str, int], None]) -> None:
        self._tell = tell
        self._counts: Counter[tuple[Outcome, str, str]] = Counter()
        self._tenants: set[str] = set()

    def add(self, outcome: Outcome, tenant: str, policy: str = "") -> None:
        self._counts[outcome, tenant, policy] += 1

    def flush(self) -> None:
        """Tells what has come together."""
        counts, self._counts = self._counts, Counter()
        for (outcome, tenant, policy), number in counts.items():
            if len(self._tenants) < TENANTS_MAX:
                self._tenants.add(tenant)
            is_known = tenant in self._tenants
            self._tell(outcome, tenant if is_known else OTHERS, policy if is_known else "", number)
            if outcome == "denied":
                continue  # as it should be
            logger.warning("limits=%s tenant=%s policy=%s requests=%d", outcome, tenant, policy or "-", number)
