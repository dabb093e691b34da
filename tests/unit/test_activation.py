"""Does a host stay whole, and an object usable, whatever the author's code does at the worst moment?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from actors.runtime import (
    AlarmInfo,
    DurableError,
    DurableObject,
    ObjectFailed,
    ObjectReset,
    StatementRefused,
    interleaved,
    read,
)
from actors.runtime.call import unpack
from actors.runtime.host_settings import HostSettings
from actors.runtime.object import ClassSpec, ObjectContext
from actors.testing import Lab
from tests.conformance.support import call_of, outcomes_of, ticks

SETTINGS = HostSettings(slots=4, resident_objects_max=8)


class Panic(BaseException):
    """What a library written in Rust raises: no `Exception`."""


class Trap:
    """Ends the process of who packs it, if it can."""

    def __reduce__(self) -> str:
        raise Panic("packed")


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

    def trap(self) -> Trap:
        return Trap()

    async def trap_later(self) -> Trap:
        await asyncio.sleep(0)
        return Trap()

    async def put_beside(self, key: str, value: Any) -> None:
        async def put() -> None:
            self.put(key, value)

        await asyncio.gather(put())

    def replace_storage(self) -> None:
        setattr(self, "storage", {})  # noqa: B010  as an author would who runs no mypy

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
        told = [type(error).__name__ for _ in range(7) for error in await outcomes_of(bad.put("k", 1))]
        assert told == ["ObjectFailed"] * 5 + ["ObjectQuarantined"] * 2


async def test_an_activation_that_fails_tells_all_who_wait_and_counts_once() -> None:
    failures = ["the only one"]

    def on_start(self: Plain) -> None:
        if failures:
            raise ValueError(failures.pop())

    plain = plain_that(on_start)
    async with Lab([plain], settings=SETTINGS) as lab:
        good = lab.get(plain, "acme", "good")
        told = await outcomes_of(*[good.put("k", 1) for _ in range(7)])
        assert [str(error) for error in told] == [f"{good.id} raised ValueError: activation failed: the only one"] * 7
        await good.put("k", 2)
        assert await good.get("k") == 2


class Unfinished(DurableObject):
    """Knows nothing of what it is to be given."""

    def __init__(self, context: ObjectContext) -> None:
        self.context = context

    def hello(self) -> str:
        return "hello"


async def test_a_class_that_forgets_its_base_is_told_so_and_harms_no_neighbour() -> None:
    async with Lab([Plain, Unfinished], settings=SETTINGS) as lab:
        before, after = lab.get(Plain, "acme", "before"), lab.get(Plain, "acme", "zafter")
        unfinished = lab.get(Unfinished, "acme", "unfinished")
        told = await outcomes_of(before.put("k", 1), unfinished.hello(), after.put("k", 2))
        assert [told[0], told[2]] == [None, None]
        assert "Unfinished.__init__ must call super().__init__(context)" in str(told[1])
        assert [await before.get("k"), await after.get("k")] == [1, 2]


async def test_what_an_object_is_given_can_not_be_replaced(lab: Lab) -> None:
    first, second = lab.get(Plain, "acme", "first"), lab.get(Plain, "acme", "second")
    told = await outcomes_of(first.put("k", 1), second.replace_storage(), second.put("k", 2))
    assert [told[0], told[2]] == [None, None]
    assert isinstance(told[1], AttributeError)
    assert [await first.get("k"), await second.get("k")] == [1, 2]


@pytest.mark.parametrize("name", ["id", "storage", "clock", "logger", "objects", "block_concurrency_while"])
def test_a_class_can_not_have_a_method_of_its_own_where_every_object_has_something(name: str) -> None:
    with pytest.raises(TypeError, match=f"^Greedy.{name} takes the place of what every object is given$"):
        ClassSpec(type("Greedy", (DurableObject,), {name: lambda self: None}))


@pytest.mark.parametrize("method", ["start", "__init__"])
async def test_an_object_that_deletes_itself_while_it_starts_is_not_made_again_and_again(method: str) -> None:
    made: list[str] = []

    async def delete(self: DurableObject) -> None:
        made.append(self.id.name)
        self.storage.delete_all()

    def init(self: DurableObject, context: ObjectContext) -> None:
        DurableObject.__init__(self, context)
        self.block_concurrency_while(lambda: delete(self))

    leaving = type("Leaving", (Plain,), {method: {"start": delete, "__init__": init}[method]})
    async with Lab([leaving], settings=SETTINGS) as lab:
        told = await outcomes_of(lab.get(leaving, "acme", "leaving").put("k", 1))
        assert "can't delete itself while it starts" in str(told[0])
    assert made == ["leaving"]


async def test_a_result_that_would_end_the_process_when_it_is_packed_ends_its_turn_only(lab: Lab) -> None:
    first, second = lab.get(Plain, "acme", "first"), lab.get(Plain, "acme", "second")
    told = await outcomes_of(first.put("k", 1), second.trap(), second.trap_later(), second.put("k", 2))
    assert [told[0], told[3]] == [None, None]
    assert [type(error) for error in told[1:3]] == [ObjectFailed, ObjectFailed]


# -- what a turn leaves behind


@pytest.mark.parametrize(
    "use",
    [
        lambda it: it.storage.sql("SELECT 1"),
        lambda it: it.storage.sql_many("SELECT ?", [(1,)]),
        lambda it: it.storage.database.table_names(),
        lambda it: it.storage.database.conn.executescript("SELECT 1"),
        lambda it: it.storage.kv.put("late", 1),
        lambda it: it.storage.kv.get("k"),
        lambda it: it.storage.set_alarm(it.clock.now()),
        lambda it: it.storage.delete_alarm(),
        lambda it: it.storage.delete_all(),
        lambda it: it.storage.transaction().__enter__(),
    ],
)
async def test_a_task_that_a_turn_left_behind_can_not_use_the_storage(use: Callable[[Plain], Any]) -> None:
    class Leaky(Plain):
        def alarm(self, info: AlarmInfo) -> None:
            """Never rings."""

        async def leave_behind(self) -> None:
            async def later() -> None:
                await turn_is_over.wait()
                use(self)

            left.append(asyncio.create_task(later()))

    left: list[asyncio.Task[None]] = []
    turn_is_over = asyncio.Event()
    async with Lab([Leaky], settings=SETTINGS) as lab:
        leaky = lab.get(Leaky, "acme", "leaky")
        await leaky.put("k", 1)
        await leaky.leave_behind()
        turn_is_over.set()
        with pytest.raises(StatementRefused, match="only the code of a turn may"):
            await left[0]
        # Nothing was begun that the next turn would carry out.
        assert await leaky.get("k") == 1
        assert lab.alarm_of(leaky) is None


async def test_what_a_turn_awaits_as_a_task_can_not_write_outside_of_its_transaction(lab: Lab) -> None:
    plain = lab.get(Plain, "acme", "p")
    told = await outcomes_of(plain.put_beside("k", 1), plain.get("k"))
    assert isinstance(told[0], StatementRefused)
    assert told[1] is None


async def test_a_panic_of_a_library_ends_its_turn_and_no_other_of_the_batch(lab: Lab) -> None:
    first, second = lab.get(Plain, "acme", "first"), lab.get(Plain, "acme", "second")
    told = await outcomes_of(first.put("k", 1), second.panic(), second.panic_later(), second.put("k", 2))
    assert [told[0], told[3]] == [None, None]
    assert [type(error) for error in told[1:3]] == [ObjectFailed, ObjectFailed]
    assert [await second.get("panicked"), await second.get("k")] == [None, 2]


# -- deleting in the middle


class Leaving(Plain):
    """Deletes itself, and goes on."""

    async def delete_and_go_on(self) -> str:
        self.storage.delete_all()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "gone"

    async def delete_and_write(self) -> None:
        self.storage.delete_all()
        await asyncio.sleep(0)
        self.storage.kv.put("k", "too late")

    async def put_around(self, key: str, other: str) -> None:
        self.storage.kv.put(key, "before")
        await self.objects.namespace(Leaving).get("acme", other).get("x")
        self.storage.kv.put(key, "after")

    @interleaved
    def delete(self) -> None:
        self.storage.delete_all()

    @interleaved
    def put_between(self, key: str, value: Any) -> None:
        self.storage.kv.put(key, value)

    def ring_in(self, seconds: float) -> None:
        self.storage.set_alarm(self.clock.now() + seconds)

    async def alarm(self, info: AlarmInfo) -> None:
        self.storage.delete_all()
        await asyncio.sleep(0)
        if self.id.name == "raises":
            raise ValueError("after it was deleted")


@pytest.fixture
async def leaving_lab() -> AsyncIterator[Lab]:
    async with Lab([Leaving], settings=SETTINGS) as lab:
        yield lab


async def test_what_comes_between_while_a_deleted_object_goes_on_meets_a_new_one(leaving_lab: Lab) -> None:
    stub = leaving_lab.get(Leaving, "acme", "a")
    await stub.put("old", 1)
    with leaving_lab.hold_turns(stub):
        going = asyncio.ensure_future(stub.delete_and_go_on())
        await ticks()
    while leaving_lab.exists(stub):
        await asyncio.sleep(0)
    assert not going.done()
    await stub.put_between("new", 2)
    assert await going == "gone"
    assert [await stub.get("old"), await stub.get("new")] == [None, 2]


async def test_a_turn_that_writes_after_it_deleted_all_is_told_that_its_object_was_deleted(leaving_lab: Lab) -> None:
    stub = leaving_lab.get(Leaving, "acme", "a")
    await stub.put("old", 1)
    with pytest.raises(ObjectReset, match="it was deleted"):
        await stub.delete_and_write()
    assert not leaving_lab.exists(stub)
    await stub.put("new", 2)
    assert [await stub.get("old"), await stub.get("new")] == [None, 2]


async def test_a_turn_whose_object_is_deleted_beside_it_is_reset(leaving_lab: Lab) -> None:
    stub, other = leaving_lab.get(Leaving, "acme", "a"), leaving_lab.get(Leaving, "acme", "b")
    with leaving_lab.hold_turns(other):
        putting = asyncio.ensure_future(stub.put_around("k", "b"))
        await ticks()
        await stub.delete()
    with pytest.raises(ObjectReset):
        await putting
    assert await stub.get("k") is None


@pytest.mark.parametrize("name", ["returns", "raises"])
async def test_a_handler_that_deletes_its_object_and_then_waits_has_run_once(
    leaving_lab: Lab, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    stub = leaving_lab.get(Leaving, "acme", name)
    await stub.ring_in(10)
    await leaving_lab.advance(10)
    assert not leaving_lab.exists(stub)
    assert "reset" not in caplog.text
    assert "not possible" not in caplog.text
    assert leaving_lab._running.host.alarms.next_at is None


async def test_an_object_that_deletes_itself_while_it_starts_is_not_activated() -> None:
    plain = plain_that(lambda self: self.storage.delete_all())
    async with Lab([plain], settings=SETTINGS) as lab:
        with pytest.raises(ObjectFailed, match="can't delete itself"):
            await lab.get(plain, "acme", "a").put("k", 1)


# -- alone


class Alone(DurableObject):
    """Waits for something before its first turn, which another decides."""

    beginning: Callable[[Alone], Any]

    async def start(self) -> None:
        await type(self).beginning(self)
        self.storage.kv.put("started", True)

    @read
    def started(self) -> bool:
        return bool(self.storage.kv.get("started"))

    @interleaved
    async def call_alone(self, other: str) -> Any:
        async def call() -> Any:
            return await self.objects.namespace(type(self)).get("acme", other).call_back(self.id.name)

        return await self.block_concurrency_while(call)

    async def call_back(self, name: str) -> Any:
        return await self.objects.namespace(type(self)).get("acme", name).started()


def alone_that(beginning: Callable[[Alone], Any]) -> type[Alone]:
    return type("Alone", (Alone,), {"beginning": staticmethod(beginning)})


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), Panic("library bug")])
async def test_a_start_that_is_cancelled_or_would_end_the_process_leaves_no_half_started_object(
    error: BaseException,
) -> None:
    errors = [error]

    async def beginning(self: Alone) -> None:
        await asyncio.sleep(0)
        if errors:
            raise errors.pop()

    alone = alone_that(beginning)
    async with Lab([alone], settings=SETTINGS) as lab:
        stub = lab.get(alone, "acme", "a")
        with pytest.raises(DurableError, match="block_concurrency_while failed"):  # sent once: a stub would repeat it
            unpack(await lab.send(stub.id, call_of(stub, "started")))
        assert await stub.started()


async def test_what_a_start_began_and_did_not_wait_for_may_call_when_it_is_over() -> None:
    begun: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def beginning(self: Alone) -> None:
        async def later() -> Any:
            await over.wait()
            return await self.objects.namespace(type(self)).get("acme", self.id.name).started()

        if self.id.name == "a":
            begun.append(asyncio.create_task(later()))

    alone = alone_that(beginning)
    async with Lab([alone], settings=SETTINGS) as lab:
        assert await lab.get(alone, "acme", "a").started()
        lab.clock.advance(3600)
        over.set()
        assert await begun[0]


async def test_a_call_back_to_an_object_that_runs_something_alone_is_a_cycle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def beginning(self: Alone) -> None:
        return None

    alone = alone_that(beginning)
    async with Lab([alone], settings=SETTINGS) as lab:
        async with asyncio.timeout(5):
            with pytest.raises(ObjectReset):
                await lab.get(alone, "acme", "a").call_alone("b")
    assert "failed: CallCycle" in caplog.text
