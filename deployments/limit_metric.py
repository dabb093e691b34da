"""Where does an operator see how often limits have denied, or could not be asked about? In a metric of Ray's."""

from __future__ import annotations

from collections.abc import Callable

from ray.serve import metrics

from deployments.limit_counts import Outcome


def counter() -> Callable[[Outcome, str, str, int], None]:
    """The metric of this replica, for a `LimitCounts`."""
    requests = metrics.Counter(
        "mobula_limited_requests",
        description="Requests that limits have denied, or would have (shadow), or could not be asked about.",
        tag_keys=("outcome", "tenant", "policy"),
    )

    def count(outcome: Outcome, tenant: str, policy: str, number: int) -> None:
        requests.inc(number, tags={"outcome": outcome, "tenant": tenant, "policy": policy})

    return count
