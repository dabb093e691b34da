"""Which of several rankings' results are best?

Reciprocal rank fusion: a result scores 1 / (60 + rank) in each ranking that has it, and the sum decides. It needs no
scores, which words and vectors measure in units of their own. Source: Cormack, Clarke and Büttcher, SIGIR 2009.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

#: The constant of the paper; larger ones let low ranks count more.
RANK_OFFSET = 60


def fuse(rankings: Sequence[Sequence[str]]) -> list[str]:
    """The ids of all rankings, best first; equal ones in the order of the first ranking."""
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, result in enumerate(ranking, start=1):
            scores[result] += 1 / (RANK_OFFSET + rank)
    return sorted(scores, key=lambda result: scores[result], reverse=True)
