"""Whatever callers, alarms, crashes and failing disks do: does an object hold what was acknowledged, and nothing else?

A state machine drives objects and a plain model of them side by side. After each step it sends some requests again,
which must change nothing, and compares state, alarms and numbers of runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.runtime import AlarmInfo, CallCycle, ObjectReset, RequestReused, idempotent, interleaved, read
from actors.runtime.alarm import RETRIES_MAX
from actors.runtime.call import unpack
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.once import REQUESTS_KEPT_S
from actors.testing import Lab
from tests.conformance.support import call_of, outcomes_of
from tests.objects import Notebook, Refusal

#: Room for all that may have an alarm, and not for all.
SETTINGS = HostSettings(slots=2, resident_objects_max=4, idle_after_s=10.0, rest_after_s=1.0)
ALARMED = st.sampled_from(["a", "b", "A"])
NAMES = st.sampled_from(["a", "b", "A", "a:b", "ö", "%"])
TEXTS = st.text("xyz", min_size=1, max_size=3)
REQUEST_IDS = st.sampled_from(["r1", "r2", "r3"])
AGAIN_S = 30.0
#: What the keys of the values begin with: the notebook has keys of its own.
VALUES = "value/"
#: What a handler does: sets or drops the alarm or not, then fails or not, in the same step or in another.
PLANS = st.sampled_from(
    [
        "ok",
        "erase",
        "and raise",
        "then raise",
        "again",
        "again and raise",
        "again then raise",
        "drop",
        "drop and raise",
        "drop then raise",
    ]
)
#: Seconds from now: overdue, at once, before another, after it.
WHENS = st.sampled_from([-50.0, 0.0, 1.0, 20.0, 45.0, 300.0])
#: Requests that are sent again after each step: the newest ones, and one of all that are recorded.
NEWEST_SENT_AGAIN = 2
SPOILS = st.tuples(st.sampled_from(["fail", "crash"]), st.booleans())


class Ringer(Notebook):
    """A notebook with an alarm."""

    def plan(self, plan: str) -> None:
        self.storage.kv.put("plan", plan)

    def set_alarm(self, at: float) -> None:
        self.storage.set_alarm(at)

    def set_alarm_and_raise(self, at: float) -> None:
        self.storage.set_alarm(at)
        raise Refusal("undone", 1)

    def delete_alarm(self) -> None:
        self.storage.delete_alarm()

    # -- values by key, nested transactions, calls to others, turns that interleave

    @idempotent
    def put_value(self, key: str, value: str) -> None:
        self.storage.kv.put(f"{VALUES}{key}", value)

    def delete_value(self, key: str) -> None:
        self.storage.kv.delete(f"{VALUES}{key}")

    @read
    def everything(self) -> tuple[Any, ...]:
        return self.lines(), self.notes(), self.values(), self.storage.get_alarm()

    @read
    def values(self, prefix: str = "", limit: int = 100, reverse: bool = False) -> dict[str, Any]:
        found = self.storage.kv.list(f"{VALUES}{prefix}", limit=limit, reverse=reverse)
        return {key.removeprefix(VALUES): value for key, value in found.items()}

    def nest(self, text: str, inner: str, undo: str) -> None:
        """Writes in a transaction and in one within it; the one of `undo` is undone."""
        with contextlib.suppress(Refusal), self.storage.transaction():
            self.add(text)
            self.storage.kv.put(f"{VALUES}{text}", "outer")
            with contextlib.suppress(Refusal), self.storage.transaction():
                self.add(inner)
                self.storage.kv.delete(f"{VALUES}{inner}")
                if undo == "inner":
                    raise Refusal("undo", 1)
            if undo == "outer":
                raise Refusal("undo", 1)

    async def have_added(self, name: str, text: str) -> int:
        self.add(f"asks {text}")
        other = self.objects.namespace(Ringer).get(self.id.tenant, name)
        number = int(await other.add(text))
        self.add(f"asked {text}")
        return number

    async def add_around(self, text: str, between: str) -> None:
        """Waits until an interleaved turn has added its line."""
        self.add(text)
        lines = len(self.lines())
        while len(self.lines()) == lines:
            await asyncio.sleep(0)
        self.add(f"{text} {between}")

    @interleaved
    @read
    def peek(self) -> list[str]:
        return self.lines()

    async def add_alone(self, text: str, fails_after: int | None) -> int:
        """A step, and two more without company."""

        async def alone() -> int:
            number = 0
            for step in range(2):
                number = self.add(f"{text} {step}")
                if step == fails_after:
                    raise Refusal("the block fails", step)
                await asyncio.sleep(0)
            return number

        self.add(text)
        return await self.block_concurrency_while(alone)

    @interleaved
    async def add_between(self, text: str) -> int:
        await asyncio.sleep(0)
        return self.add(text)

    async def alarm(self, info: AlarmInfo) -> None:
        plan = self.storage.kv.get("plan", "ok")
        if plan == "erase":
            self.storage.delete_all()
            return
        self.add(f"rang {info.scheduled_at:.0f} {info.retry_count}")
        if plan.startswith("again"):
            self.storage.set_alarm(self.clock.now() + AGAIN_S)
        if plan.startswith("drop"):
            self.storage.delete_alarm()
        if plan.endswith("then raise"):
            await asyncio.sleep(0)
        if plan.endswith("raise"):
            raise Refusal("the handler fails", info.retry_count)


@dataclass(kw_only=True, slots=True)
class Model:
    """What one object ought to hold."""

    lines: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    requests: dict[str, tuple[str, int]] = field(default_factory=dict)
    #: Numbers are not given twice, while the object exists.
    last_number: int = 0
    plan: str = "ok"
    #: When to call the handler, what it was set for, and how often it has raised since.
    alarm: tuple[float, float, int] | None = None

    def add(self, text: str) -> int:
        self.lines.append(text)
        self.last_number += 1
        return self.last_number

    def append(self, text: str, request_id: str) -> int:
        if request_id not in self.requests:
            self.requests[request_id] = (text, self.add(text))
        return self.requests[request_id][1]

    def nest(self, text: str, inner: str, undo: str) -> None:
        if undo == "outer":
            return
        self.add(text)
        self.values[text] = "outer"
        if undo != "inner":
            self.add(inner)
            self.values.pop(inner, None)

    def erase(self) -> None:
        fresh = Model()
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))

    def set_alarm(self, at: float) -> None:
        self.alarm = (at, at, 0)

    def ring(self, now: float) -> bool:
        """The handler runs. False if it raises."""
        return self.ring_first_step(now) and self.ring_to_the_end(now)

    def ring_first_step(self, now: float) -> bool:
        """What its first commit keeps. False if that is the one that puts the alarm off."""
        assert self.alarm is not None
        _, scheduled_at, retry_count = self.alarm
        if self.plan == "erase":
            self.erase()
            return True
        if self.plan.endswith("and raise"):
            self.put_off(now)
            return False
        self.add(f"rang {scheduled_at:.0f} {retry_count}")
        if self.plan.startswith("again"):
            self.set_alarm(now + AGAIN_S)
        elif not self.plan.endswith("raise") or self.plan.startswith("drop"):
            self.alarm = None
        return True

    def ring_to_the_end(self, now: float) -> bool:
        if self.plan == "then raise":
            self.put_off(now)
        return not self.plan.endswith("raise")

    def put_off(self, now: float) -> None:
        assert self.alarm is not None
        _, scheduled_at, retry_count = self.alarm
        self.alarm = None
        if retry_count < RETRIES_MAX:
            self.alarm = (now + 2.0 ** (retry_count + 1), scheduled_at, retry_count + 1)

    def let_time_pass(self, now: float, until: float) -> None:
        while self.alarm is not None and self.alarm[0] <= until:
            now = max(now, self.alarm[0])
            self.ring(now)


class DurableObjects(RuleBasedStateMachine):
    """One host on one data directory; restarts and crashes put another in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.models: dict[str, Model] = {}
        #: Name and request id of the newest requests.
        self.newest: deque[tuple[str, str]] = deque(maxlen=NEWEST_SENT_AGAIN)
        self.steps = 0

    @initialize(always_evict=st.booleans())
    def start(self, always_evict: bool) -> None:
        self.lab = Lab([Ringer], always_evict=always_evict, settings=SETTINGS)
        self.run(self.lab.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20.0))

    def stub(self, name: str) -> Stub[Ringer]:
        return self.lab.get(Ringer, "acme", name)

    def model(self, name: str) -> Model:
        return self.models.setdefault(name, Model())

    @property
    def now(self) -> float:
        return self.lab.clock.now()

    # -- calls

    @rule(name=NAMES, text=TEXTS)
    def add(self, name: str, text: str) -> None:
        assert self.run(self.stub(name).add(text)) == self.model(name).add(text)

    @rule(name=NAMES, key=TEXTS, value=TEXTS)
    def put(self, name: str, key: str, value: str) -> None:
        self.run(self.stub(name).put(key, value))
        self.model(name).notes[key] = value

    @rule(name=NAMES, text=TEXTS)
    def fail(self, name: str, text: str) -> None:
        with pytest.raises(Refusal):
            self.run(self.stub(name).add_and_raise(text, Refusal("no", 1)))

    @rule(name=NAMES, texts=st.lists(TEXTS, min_size=1, max_size=3))
    def add_in_steps(self, name: str, texts: list[str]) -> None:
        numbers = self.run(self.stub(name).add_in_steps(*texts))
        assert numbers == [self.model(name).add(text) for text in texts]

    @rule(name=NAMES, text=TEXTS, request_id=REQUEST_IDS)
    def append_once(self, name: str, text: str, request_id: str) -> None:
        model = self.model(name)
        text, _ = model.requests.get(request_id, (text, 0))
        assert self.run(self.append(name, text, request_id)) == model.append(text, request_id)

    async def append(self, name: str, text: str, request_id: str) -> Any:
        self.newest.append((name, request_id))
        return await self.send(name, "append", text, request_id=request_id)

    async def send(self, name: str, method: str, *args: Any, request_id: str = "") -> Any:
        """Once: a stub would repeat what is safe to repeat."""
        stub = self.stub(name)
        return unpack(await self.lab._running.send(stub.id, call_of(stub, method, *args, request_id=request_id)))

    @rule(name=NAMES, text=TEXTS, request_id=REQUEST_IDS, method=st.sampled_from(["append", "append_all"]))
    def use_a_request_id_for_something_else(self, name: str, text: str, request_id: str, method: str) -> None:
        self.append_once(name, text, request_id)
        first, _ = self.model(name).requests[request_id]
        other: tuple[Any, ...] = (f"not {first}",) if method == "append" else ([first], {})
        with pytest.raises(RequestReused):
            self.run(self.send(name, method, *other, request_id=request_id))

    @rule(calls=st.lists(st.tuples(NAMES, TEXTS, st.sampled_from(["add", "fail", "erase", "read"])), max_size=8))
    def many_at_once(self, calls: list[tuple[str, str, str]]) -> None:
        sent: list[Coroutine[Any, Any, Any]] = []
        for name, text, what in calls:
            stub = self.stub(name)
            sent.append(
                {
                    "add": lambda stub=stub, text=text: stub.add(text),
                    "fail": lambda stub=stub, text=text: stub.add_and_raise(text, Refusal(text, 1)),
                    "erase": lambda stub=stub, text=text: stub.add_and_erase(text),
                    "read": lambda stub=stub, text=text: stub.lines(),
                }[what]()
            )

        async def together() -> list[Any]:
            return await outcomes_of(*sent)

        for (name, text, what), outcome in zip(calls, self.run(together()), strict=True):
            if what == "add":
                assert outcome == self.model(name).add(text)
            elif what == "fail":
                assert isinstance(outcome, Refusal)
            elif what == "erase":
                assert outcome is None
                self.models[name] = Model()
            else:
                assert outcome == self.model(name).lines

    @rule(name=NAMES)
    def erase(self, name: str) -> None:
        self.run(self.stub(name).erase())
        self.models[name] = Model()

    # -- values by key, nested transactions, calls to others, turns that interleave

    @rule(name=NAMES, key=TEXTS, value=TEXTS)
    def put_value(self, name: str, key: str, value: str) -> None:
        self.run(self.stub(name).put_value(key, value))
        self.model(name).values[key] = value

    @rule(name=NAMES, key=TEXTS)
    def delete_value(self, name: str, key: str) -> None:
        self.run(self.stub(name).delete_value(key))
        self.model(name).values.pop(key, None)

    @rule(name=NAMES, prefix=st.text("xyz", max_size=2), limit=st.integers(1, 4), reverse=st.booleans())
    def list_values(self, name: str, prefix: str, limit: int, reverse: bool) -> None:
        found = self.run(self.stub(name).values(prefix, limit, reverse))
        values = self.model(name).values
        keys = sorted((key for key in values if key.startswith(prefix)), reverse=reverse)[:limit]
        assert list(found.items()) == [(key, values[key]) for key in keys]

    @rule(name=NAMES, text=TEXTS, inner=TEXTS, undo=st.sampled_from(["", "inner", "outer"]))
    def nest(self, name: str, text: str, inner: str, undo: str) -> None:
        self.run(self.stub(name).nest(text, inner, undo))
        self.model(name).nest(text, inner, undo)

    @rule(name=NAMES, other=NAMES, text=TEXTS)
    def call_another(self, name: str, other: str, text: str) -> None:
        call = self.stub(name).have_added(other, text)
        if name == other:
            with pytest.raises(CallCycle):  # within the first step, which is undone
                self.run(call)
            return
        self.model(name).add(f"asks {text}")
        assert self.run(call) == self.model(other).add(text)
        self.model(name).add(f"asked {text}")

    @rule(name=NAMES, other=NAMES, text=TEXTS, spoil=SPOILS)
    def lose_the_commit_of_one_that_is_called(self, name: str, other: str, text: str, spoil: tuple[str, bool]) -> None:
        how, reached_disk = spoil
        if name == other or how == "crash":
            return
        self.spoil(other, how, reached_disk)
        with pytest.raises(ObjectReset):
            self.run(self.stub(name).have_added(other, text))
        self.model(name).add(f"asks {text}")
        if reached_disk:
            self.model(other).add(text)

    @rule(name=NAMES, text=TEXTS, between=TEXTS)
    def interleave(self, name: str, text: str, between: str) -> None:
        stub, model = self.stub(name), self.model(name)

        async def together() -> list[Any]:
            return list(await asyncio.gather(stub.add_around(text, between), stub.add_between(between)))

        model.add(text)
        assert self.run(together()) == [None, model.add(between)]
        model.add(f"{text} {between}")

    @rule(name=NAMES, text=TEXTS, between=TEXTS, spoil=SPOILS, under_way=st.booleans())
    def lose_a_commit_of_turns_that_interleave(
        self, name: str, text: str, between: str, spoil: tuple[str, bool], under_way: bool
    ) -> None:
        how, reached_disk = spoil
        stub, model = self.stub(name), self.model(name)

        async def together() -> list[Any]:
            if not under_way:
                self.spoil(name, how, reached_disk)
            around = asyncio.ensure_future(stub.add_around(text, between))
            if under_way:  # then it is the commit of whichever goes on first, or that of both
                lines = len(model.lines)
                while len(await stub.peek()) == lines:
                    pass
                self.spoil(name, how, reached_disk)
            return await outcomes_of(around, stub.add_between(between))

        around, added = self.run(together())
        assert isinstance(around, ObjectReset)
        if under_way or reached_disk:
            model.add(text)
        if isinstance(added, ObjectReset):
            lines = self.run(stub.lines())
            if under_way and reached_disk and lines == [*model.lines, between]:
                model.add(between)
        else:
            assert added == model.add(between)

    @rule(name=NAMES, text=TEXTS, between=TEXTS, fails_after=st.sampled_from([None, None, 0, 1]))
    def have_it_alone(self, name: str, text: str, between: str, fails_after: int | None) -> None:
        stub, model = self.stub(name), self.model(name)

        async def together() -> list[Any]:
            before = await stub.incarnation()
            outcomes = await outcomes_of(stub.add_alone(text, fails_after), stub.add_between(between))
            return [*outcomes, before == await stub.incarnation()]

        alone, added, same = self.run(together())
        model.add(text)
        if fails_after is None:
            assert alone == [model.add(f"{text} {step}") for step in range(2)][-1]
            assert added == model.add(between)
            return
        assert isinstance(alone, ObjectReset)
        assert not same
        for step in range(fails_after):
            model.add(f"{text} {step}")
        if not isinstance(added, ObjectReset):  # else it had begun, and was waiting for its first step
            assert added == model.add(between)

    # -- alarms

    @rule(name=ALARMED, plan=PLANS)
    def plan(self, name: str, plan: str) -> None:
        self.run(self.stub(name).plan(plan))
        self.model(name).plan = plan

    @rule(name=ALARMED, plan=PLANS, when=WHENS, seconds=st.sampled_from([0.0, 31.0, 400.0]))
    def have_it_ring(self, name: str, plan: str, when: float, seconds: float) -> None:
        # Together, since they would seldom follow each other.
        self.plan(name, plan)
        self.set_alarm(name, when)
        self.time_passes(seconds)

    @rule(name=ALARMED, when=WHENS)
    def set_alarm(self, name: str, when: float) -> None:
        self.run(self.stub(name).set_alarm(self.now + when))
        self.model(name).set_alarm(self.now + when)

    @rule(name=ALARMED, when=WHENS)
    def set_alarm_and_raise(self, name: str, when: float) -> None:
        with pytest.raises(Refusal):
            self.run(self.stub(name).set_alarm_and_raise(self.now + when))

    @rule(name=ALARMED)
    def delete_alarm(self, name: str) -> None:
        self.run(self.stub(name).delete_alarm())
        self.model(name).alarm = None

    @rule(name=ALARMED)
    def ring_now(self, name: str) -> None:
        ringing, model = self.lab.fire_alarm(self.stub(name)), self.model(name)
        if model.alarm is None:
            assert self.run(ringing) is False
        elif model.ring(self.now):
            assert self.run(ringing) is True
        else:
            with pytest.raises(Refusal):
                self.run(ringing)

    @rule(name=ALARMED, spoil=SPOILS)
    def ring_and_lose_the_first_commit(self, name: str, spoil: tuple[str, bool]) -> None:
        how, reached_disk = spoil
        model = self.model(name)
        if model.alarm is None:
            return
        if reached_disk:
            model.ring_first_step(self.now)
        self.spoil(name, how, reached_disk)
        with pytest.raises((ObjectReset, Refusal)):
            self.run(self.lab.fire_alarm(self.stub(name)))
        # The host that was not lost puts the alarm off without a word on disk; the next one fires it when it is due.
        self.crash()

    @rule(seconds=st.sampled_from([0.0, 1.0, 2.0, 9.0, 31.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        now = self.now
        self.run(self.lab.advance(seconds))
        for model in self.models.values():
            model.let_time_pass(now, now + seconds)

    @rule(name=NAMES)
    def requests_expire(self, name: str) -> None:
        # One new request removes a few old ones: as many as there are ids here.
        self.lab.clock.advance(REQUESTS_KEPT_S + 1)
        self.time_passes(0.0)
        for each in list(self.models):
            if self.models[each].requests:
                self.run(self.stub(each).append("new day"))
                self.models[each].add("new day")
                self.models[each].requests.clear()

    # -- what happens to hosts and disks

    def spoil(self, name: str, how: str, reached_disk: bool) -> None:
        spoil = self.lab.fail_next_commit if how == "fail" else self.lab.crash_in_next_commit
        spoil(self.stub(name), reached_disk=reached_disk)

    @rule(
        name=ALARMED,
        text=TEXTS,
        when=WHENS,
        spoil=SPOILS,
        what=st.sampled_from(
            [
                "add",
                "set alarm",
                "delete alarm",
                "erase",
                "plan",
                "steps",
                "put value",
                "delete value",
                "nest",
                "nest and undo",
                "alone",
            ]
        ),
    )
    def lose_a_commit(self, name: str, text: str, when: float, spoil: tuple[str, bool], what: str) -> None:
        how, reached_disk = spoil
        stub, model = self.stub(name), self.model(name)
        at = self.now + when
        key = min(model.values, default=text)

        def drop_alarm() -> None:
            model.alarm = None

        def plan_again() -> None:
            model.plan = "again"

        calls: dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Any]]] = {
            "add": (lambda: stub.add(text), lambda: model.add(text)),
            "set alarm": (lambda: stub.set_alarm(at), lambda: model.set_alarm(at)),
            "delete alarm": (lambda: stub.delete_alarm(), drop_alarm),
            "erase": (lambda: stub.erase(), model.erase),
            "plan": (lambda: stub.plan("again"), plan_again),
            "steps": (lambda: stub.add_in_steps(text, "never"), lambda: model.add(text)),
            "put value": (lambda: self.send(name, "put_value", key, text), lambda: model.values.update({key: text})),
            "delete value": (lambda: stub.delete_value(key), lambda: model.values.pop(key, None)),
            "nest": (lambda: stub.nest(text, key, ""), lambda: model.nest(text, key, "")),
            "nest and undo": (lambda: stub.nest(text, key, "inner"), lambda: model.nest(text, key, "inner")),
            "alone": (lambda: stub.add_alone(text, None), lambda: model.add(text)),
        }
        call, effect = calls[what]

        async def lost() -> None:
            with pytest.raises(ObjectReset):
                await call()

        self.spoil(name, how, reached_disk)
        self.run(lost())
        if reached_disk:  # which the caller can't know
            effect()

    @rule(name=NAMES, text=TEXTS, reached_disk=st.booleans())
    def a_lost_host_has_a_request_repeated(self, name: str, text: str, reached_disk: bool) -> None:
        self.spoil(name, "crash", reached_disk)
        assert self.run(self.stub(name).append(text)) == self.model(name).add(text)

    @rule(name=NAMES, text=TEXTS, request_id=REQUEST_IDS, reached_disk=st.booleans())
    def a_request_whose_commit_failed_is_done_once(
        self, name: str, text: str, request_id: str, reached_disk: bool
    ) -> None:
        model = self.model(name)
        text, _ = model.requests.get(request_id, (text, 0))
        self.spoil(name, "fail", reached_disk)

        async def twice() -> Any:
            with pytest.raises(ObjectReset):
                await self.append(name, text, request_id)
            return await self.append(name, text, request_id)

        assert self.run(twice()) == model.append(text, request_id)

    @rule(name=NAMES, text=TEXTS, reached_disk=st.booleans())
    def a_stub_repeats_a_request_whose_commit_failed(self, name: str, text: str, reached_disk: bool) -> None:
        self.spoil(name, "fail", reached_disk)
        assert self.run(self.stub(name).append(text)) == self.model(name).add(text)

    @rule(name=NAMES, key=TEXTS, value=TEXTS, spoil=SPOILS)
    def a_stub_repeats_a_put_whose_commit_was_lost(
        self, name: str, key: str, value: str, spoil: tuple[str, bool]
    ) -> None:
        self.spoil(name, *spoil)
        self.put_value(name, key, value)

    @rule(name=NAMES)
    def hibernate(self, name: str) -> None:
        self.lab.evict(self.stub(name))

    @rule()
    def restart(self) -> None:
        self.lab.restart()

    @rule()
    def crash(self) -> None:
        """The machine goes on with the files as they were at that moment, never closed."""
        self.lab.crash()

    @invariant()
    def no_more_are_open_than_may_be(self) -> None:
        if hasattr(self, "lab"):
            assert self.lab._running.host.resident_objects <= SETTINGS.resident_objects_max

    @invariant()
    def what_is_sent_again_is_answered_as_before_and_nothing_else_happens(self) -> None:
        recorded = [(name, request_id) for name, model in self.models.items() for request_id in model.requests]
        self.steps += 1
        again = {pair for pair in self.newest if pair in recorded}
        if recorded:
            again.add(recorded[self.steps % len(recorded)])

        async def send_again() -> None:
            for name, request_id in sorted(again):
                text, number = self.models[name].requests[request_id]
                assert await self.send(name, "append", text, request_id=request_id) == number

        if again:
            self.run(send_again())
        self.state_and_alarms_agree()

    def state_and_alarms_agree(self) -> None:
        async def look() -> dict[str, tuple[Any, ...]]:
            return {name: await self.stub(name).everything() for name in self.models}

        if hasattr(self, "lab"):
            expected = {
                name: (model.lines, model.notes, model.values, model.alarm[0] if model.alarm else None)
                for name, model in self.models.items()
            }
            assert self.run(look()) == expected

    def teardown(self) -> None:
        if hasattr(self, "lab"):
            self.run(self.lab.__aexit__())
        self.loop.close()


TestDurableObjects = DurableObjects.TestCase
TestDurableObjects.settings = settings(max_examples=settings().max_examples // 2)
