"""Does a client that asks for five times what its bucket gives get all of that, and no more?

An open loop over many connections, one ingress replica. `tests/integration` and `tests/fault` do the same with two
replicas and with hosts that are killed.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tests.benchmarks.report import Row
from tests.integration.conftest import Service
from tests.paced_load import Load

KEY: Final = "sk-paced"
#: What the tenant `paced` has.
CAPACITY: Final = 100.0
REFILL_PER_SECOND: Final = 50.0
CLIENTS: Final = 50
FOR_S: Final = 20.0
FOR_QUICK_S: Final = 5.0


def accuracy(service: Service, *, quick: bool) -> list[Row]:
    """What was admitted, against what the bucket held and gained."""
    for_s = FOR_QUICK_S if quick else FOR_S
    one = Load(capacity=CAPACITY, refill_per_second=REFILL_PER_SECOND)
    asyncio.run(one.run(service, KEY, "paced", rate=5 * REFILL_PER_SECOND, clients=CLIENTS, for_s=for_s))
    given = CAPACITY + REFILL_PER_SECOND * for_s
    return [
        Row(
            work=f"checks admitted of {round(5 * REFILL_PER_SECOND * for_s):,} in {for_s:g} s, by {CLIENTS} clients",
            ours=[one.admitted],
            against="what the bucket gave",
            theirs=[given],
            unit="checks",
            bar="within 1 %, never above",
            value=f"{one.admitted / given:.4f}",
            is_reached=one.least <= one.admitted <= one.most,
        )
    ]
