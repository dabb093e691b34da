"""What is a host's loop doing right now, and for how long?

While code of a class runs nothing else of the host does. A turn that holds the loop for longer than `slow_turn_ms` is
logged with its object and method.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from actors.runtime.object_id import ObjectId

logger = logging.getLogger("mobula.objects")


class Watch:
    """Told whenever code of a class begins and ends.

    Args:
        slow_turn_ms: what is logged.
        timer: seconds that never go back.
    """

    def __init__(self, slow_turn_ms: float, timer: Callable[[], float] = time.perf_counter) -> None:
        self._slow_s = slow_turn_ms / 1000
        self._timer = timer
        self._since_s = 0.0

    def enter(self, mark: bytes) -> None:
        """
        Args:
            mark: class, stem and method, each ended by a zero byte but the last.
        """
        self._since_s = self._timer()

    def leave(self, object_id: ObjectId, method: str) -> None:
        took_s = self._timer() - self._since_s
        if took_s > self._slow_s:
            logger.warning(
                "object=%s method=%s held the loop for %.0f ms: its neighbours waited", object_id, method, took_s * 1e3
            )
