"""When does a stub ask again by itself?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.runtime import ObjectReset
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import HostLost, HostRetired
from actors.runtime.namespace import Namespace, Stub
from actors.runtime.object import ClassSpec
from tests.objects import Notebook


class Repeating:
    """A backend whose host gets lost a number of times before it replies."""

    def __init__(self, backend: LocalBackend, losses: int, error: Exception) -> None:
        self._backend = backend
        self._error = error
        self.losses = losses
        self.runs_before_loss = True

    async def send(self, object_id: Any, call: Any) -> Any:
        if self.losses:
            self.losses -= 1
            if self.runs_before_loss:
                await self._backend.send(object_id, call)
            raise self._error
        return await self._backend.send(object_id, call)

    def send_ref(self, object_id: Any, call: Any) -> Any:
        raise NotImplementedError


class TestRepeating:
    """What does a stub do when the host is lost before it replied?"""

    @pytest.fixture
    def lossy(self, backend: LocalBackend) -> Repeating:
        return Repeating(backend, 1, HostLost("host-0", "it was killed"))

    @pytest.fixture
    def stub(self, lossy: Repeating) -> Stub[Notebook]:
        return Namespace[Notebook](lossy, ClassSpec(Notebook)).get("acme", "n1")

    async def test_a_read_is_asked_again(self, stub: Stub[Notebook]) -> None:
        assert await stub.lines() == []

    async def test_an_idempotent_call_is_made_again(self, stub: Stub[Notebook]) -> None:
        await stub.put("k", "v")
        assert await stub.get("k") == "v"

    async def test_an_exactly_once_call_is_repeated_and_done_once(self, stub: Stub[Notebook], lossy: Repeating) -> None:
        lossy.losses = 3
        assert await stub.append("x") == 1
        assert await stub.lines() == ["x"]

    async def test_a_plain_call_is_left_to_its_caller(self, stub: Stub[Notebook]) -> None:
        with pytest.raises(ObjectReset, match="it was killed"):
            await stub.add("x")
        assert await stub.lines() == ["x"]

    async def test_a_plain_call_that_surely_did_not_run_is_repeated(self, backend: LocalBackend) -> None:
        lossy = Repeating(backend, 2, HostRetired())
        lossy.runs_before_loss = False
        stub = Namespace[Notebook](lossy, ClassSpec(Notebook)).get("acme", "n1")
        assert await stub.add("x") == 1

    async def test_repeating_ends(
        self, stub: Stub[Notebook], lossy: Repeating, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("actors.runtime.namespace.REPEAT_FOR_S", 0.1)
        lossy.losses = 10_000
        with pytest.raises(ObjectReset, match="it was killed"):
            await stub.lines()
        assert lossy.losses > 9_900

    async def test_a_call_without_a_reply_is_given_up(self, lossy: Repeating, monkeypatch: pytest.MonkeyPatch) -> None:
        async def never(object_id: Any, call: Any) -> Any:
            await asyncio.Event().wait()

        monkeypatch.setattr(lossy, "send", never)
        stub = Namespace[Notebook](lossy, ClassSpec(Notebook)).get("acme", "n1", timeout_s=0.05)
        with pytest.raises(ObjectReset, match=r"no reply within 0\.05 s"):
            await stub.lines()
