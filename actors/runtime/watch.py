"""What is a host's loop doing right now, and for how long?

While code of a class runs nothing else of the host does. It is marked, so that the next host knows whose it was if it
ends this one, and logged with its object and method if it holds the loop for longer than `slow_turn_ms`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from actors.runtime.object_id import ObjectId
from actors.runtime.running import RunningMark

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
        #: None until the host owns its slots: the file may be that of a host which lives.
        self.mark: RunningMark | None = None

    def enter(self, mark: bytes) -> None:
        """
        Args:
            mark: as `encode_mark` makes it.
        """
        if self.mark is not None:
            self.mark.set(mark)
        self._since_s = self._timer()

    def leave(self, object_id: ObjectId, method: str) -> None:
        took_s = self._timer() - self._since_s
        if self.mark is not None:
            self.mark.clear()
        if took_s > self._slow_s:
            logger.warning(
                "object=%s method=%s held the loop for %.0f ms: its neighbours waited", object_id, method, took_s * 1e3
            )
