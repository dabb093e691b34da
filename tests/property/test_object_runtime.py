"""Whatever callers, crashes and failing disks do: does an object hold what was acknowledged, and nothing else?

A state machine drives the in-process backend and a plain dictionary side by side, and compares them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.runtime import ObjectReset
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import unpack
from actors.runtime.clock import ManualClock
from actors.runtime.host import HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.once import REQUESTS_KEPT_S
from actors.runtime.storage import Storage
from tests.conformance.support import call_of, outcomes_of
from tests.objects import Notebook, Refusal

SETTINGS = HostSettings(slots=2, resident_objects_max=3, idle_after_s=10.0)
NAMES = st.sampled_from(["a", "b", "A", "a:b", "ö"])
TEXTS = st.text("xyz", min_size=1, max_size=3)
REQUEST_IDS = st.sampled_from(["r1", "r2", "r3"])


class Model:
    """What one object ought to hold."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: dict[str, str] = {}
        self.requests: dict[str, tuple[str, int]] = {}
        #: Numbers are not given twice, while the object exists.
        self.last_number = 0

    def add(self, text: str) -> int:
        self.lines.append(text)
        self.last_number += 1
        return self.last_number


class DurableObjects(RuleBasedStateMachine):
    """One backend on one data directory; restarts and crashes put another in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mobula-test-"))
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.models: dict[str, Model] = {}
        self.crashes = 0
        self.monkeypatch = pytest.MonkeyPatch()

    @initialize()
    def start(self) -> None:
        self.data_dir = self.folder / "0"
        self.open()

    def open(self) -> None:
        self.backend = LocalBackend(self.data_dir, [Notebook], settings=SETTINGS, clock=self.clock)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20.0))

    def stub(self, name: str) -> Stub[Notebook]:
        return self.backend.namespace(Notebook).get("acme", name)

    def model(self, name: str) -> Model:
        return self.models.setdefault(name, Model())

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
        text, number = model.requests.get(request_id, (text, 0))
        stub = self.stub(name)
        reply = unpack(self.run(self.backend.send(stub.id, call_of(stub, "append", text, request_id=request_id))))
        if not number:
            number = model.add(text)
            model.requests[request_id] = (text, number)
        assert reply == number

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

    @rule(name=NAMES, text=TEXTS, reached_disk=st.booleans())
    def commit_fails(self, name: str, text: str, reached_disk: bool) -> None:
        commit = Storage.commit

        def failing(storage: Storage) -> None:
            if reached_disk:
                commit(storage)
            raise ObjectReset("Notebook", "the disk failed")

        with self.monkeypatch.context() as patch:
            patch.setattr(Storage, "commit", failing)
            with pytest.raises(ObjectReset):
                self.run(self.stub(name).add(text))
        if reached_disk:  # which the caller can't know
            self.model(name).add(text)

    # -- what happens to hosts

    @rule(name=NAMES)
    def hibernate(self, name: str) -> None:
        assert self.backend.host.evict(self.stub(name).id)

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.backend.host.sweep()

    @rule(name=NAMES)
    def requests_expire(self, name: str) -> None:
        # One new request removes a few old ones: as many as there are ids here.
        self.clock.advance(REQUESTS_KEPT_S + 1)
        for each in list(self.models):
            if self.models[each].requests:
                self.run(self.stub(each).append("new day"))
                self.models[each].add("new day")
                self.models[each].requests.clear()

    @rule()
    def restart(self) -> None:
        self.backend.close()
        self.open()

    @rule()
    def crash(self) -> None:
        """The machine goes on with the files as they were at that moment, never closed."""
        self.crashes += 1
        crashed = self.folder / str(self.crashes)
        shutil.copytree(self.data_dir, crashed)
        self.backend.close()
        shutil.rmtree(self.data_dir)
        self.data_dir = crashed
        self.open()

    @invariant()
    def no_more_are_open_than_may_be(self) -> None:
        if hasattr(self, "backend"):
            assert self.backend.host.resident_objects <= SETTINGS.resident_objects_max

    @invariant()
    def everything_acknowledged_is_there(self) -> None:
        for name, model in self.models.items():
            assert self.run(self.stub(name).lines()) == model.lines
            assert self.run(self.stub(name).notes()) == model.notes

    def teardown(self) -> None:
        if hasattr(self, "backend"):
            self.backend.close()
        self.loop.close()
        self.monkeypatch.undo()
        shutil.rmtree(self.folder)


TestDurableObjects = DurableObjects.TestCase
TestDurableObjects.settings = settings(max_examples=settings().max_examples // 5, stateful_step_count=30)
