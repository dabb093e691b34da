"""What time is it? A parameter everywhere, so that no test sleeps and none flakes."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Wall time in seconds since 1970. May jump either way."""

    def monotonic(self) -> float:
        """Seconds since some start. Never goes back; for waits and idleness."""


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that only its holder moves."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._now += seconds
        self._monotonic += seconds

    def set_wall(self, now: float) -> None:
        """Moves the wall clock alone, as an administrator or a time server would."""
        self._now = now
