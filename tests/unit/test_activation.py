"""Does an object's host stay whole, and the object itself usable, whatever its author's code does at the worst moment?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from actors.runtime import (
    AlarmInfo,
    CallCycle,
    DurableError,
    DurableObject,
    ObjectFailed,
    ObjectReset,
    interleaved,
    read,
)
from actors.runtime.host import HostSettings
from actors.testing import Lab
from tests.conformance.support import outcomes_of, ticks

SETTINGS = HostSettings(slots=4, resident_objects_max=8)


class Panic(BaseException):
    """What a library written in Rust raises: no `Exception`."""


class Plain(DurableObject):
    """Does what the test has it do."""

    #: What `start` does with the object, and what it has to do later.
    on_start: Callable[[Plain], Any] = staticmethod(lambda _: None)

    def start(self) -> None:
        type(self).on_start(self)

    def put(self, key: str, value: Any) -> None:
        self.storage.kv.put(key, value)

    @read
    def get(self, key: str) -> Any:
        return self.storage.kv.get(key)

    def panic(self) -> None:
        self.storage.kv.put("panicked", True)
        raise Panic("library bug")

    async def panic_later(self) -> None:
        await asyncio.sleep(0)
        raise Panic("library bug")


def plain_that(on_start: Callable[[Plain], Any]) -> type[Plain]:
    return type("Plain", (Plain,), {"on_start": staticmethod(on_start)})


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab([Plain], settings=SETTINGS) as lab:
        yield lab


def raising(error: BaseException) -> Callable[[Plain], None]:
    def on_start(self: Plain) -> None:
        if self.id.name == "bad":
            raise error

    return on_start


# -- what is no Exception


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit(), Panic("library bug")])
async def test_a_start_that_would_end_the_process_fails_its_activation_and_no_neighbour(error: BaseException) -> None:
    plain = plain_that(raising(error))
    async with Lab([plain], settings=SETTINGS) as lab:
        before, bad, after = (lab.get(plain, "acme", name) for name in ("before", "bad", "zafter"))
        told = await outcomes_of(before.put("k", 1), bad.put("k", 2), after.put("k", 3))
        assert [told[0], told[2]] == [None, None]
        assert isinstance(told[1], ObjectFailed)
        assert [await before.get("k"), await after.get("k")] == [1, 3]


async def test_an_object_that_always_ends_its_activation_so_is_quarantined() -> None:
    plain = plain_that(raising(SystemExit(3)))
    async with Lab([plain], settings=SETTINGS) as lab:
        bad = lab.get(plain, "acme", "bad")
        told = [type(error).__name__ for error in await outcomes_of(*[bad.put("k", 1) for _ in range(7)])]
        assert told == ["ObjectFailed"] * 5 + ["ObjectQuarantined"] * 2


async def test_a_panic_of_a_library_ends_its_turn_and_no_other_of_the_batch(lab: Lab) -> None:
    first, second = lab.get(Plain, "acme", "first"), lab.get(Plain, "acme", "second")
    told = await outcomes_of(first.put("k", 1), second.panic(), second.panic_later(), second.put("k", 2))
    assert [told[0], told[3]] == [None, None]
    assert isinstance(told[1], ObjectFailed) and isinstance(told[2], ObjectFailed)
    assert [await second.get("panicked"), await second.get("k")] == [None, 2]
