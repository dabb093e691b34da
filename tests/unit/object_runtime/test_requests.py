"""Is a request that comes again recognised?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from actors.runtime import InvalidArgument
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import unpack
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from actors.runtime.once import REQUESTS_KEPT_S
from tests.conformance.support import call_of
from tests.objects import Notebook


class TestRequests:
    """Which requests are recognised, and for how long?"""

    @pytest.mark.parametrize(
        "request_id",
        ["", "x" * 129, "a b", "a\n", "caf\u00e9", "\ud83d", "\x7f"],
        ids=lambda request_id: ascii(request_id[:8]),
    )
    async def test_a_request_id_is_short_and_visible(self, notebook: Stub[Notebook], request_id: str) -> None:
        with pytest.raises(InvalidArgument) as refused:
            notebook.append.once(request_id)
        assert refused.value.field == "request_id"
        assert await notebook.append.once("!" * 128)("longest") == 1

    async def test_only_an_exactly_once_method_takes_a_request_id(self, notebook: Stub[Notebook]) -> None:
        for method in (notebook.add, notebook.put, notebook.lines):
            with pytest.raises(TypeError, match="is not declared @exactly_once"):
                method.once("r1")

    async def test_a_record_expires_after_its_time(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock
    ) -> None:
        request = call_of(notebook, "append", "x", request_id="old")
        unpack(await backend.send(notebook.id, request))
        clock.advance(86_400 - 1)
        await notebook.append("another")  # which looks for records to remove
        assert unpack(await backend.send(notebook.id, request)) == 1
        clock.advance(2)
        await notebook.append("another")
        assert unpack(await backend.send(notebook.id, request)) == 4
        assert await notebook.lines() == ["x", "another", "another", "x"]

    async def test_records_of_a_busy_day_do_not_pile_up(
        self, notebook: Stub[Notebook], clock: ManualClock, path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await asyncio.gather(*[notebook.append("x") for _ in range(200)])
        clock.advance(REQUESTS_KEPT_S + 1)
        await asyncio.gather(*[notebook.append("x") for _ in range(50)])
        clock.advance(0)
        backend = notebook._backend
        assert isinstance(backend, LocalBackend)
        backend.close()
        left = Database(path_of(notebook))
        assert left.execute("SELECT count(*) FROM _mobula_requests").fetchone() == (50,)
        left.close()

    async def test_a_record_survives_hibernation(self, backend: LocalBackend, notebook: Stub[Notebook]) -> None:
        request = call_of(notebook, "append", "x", request_id="r")
        unpack(await backend.send(notebook.id, request))
        assert backend.host.evict(notebook.id)
        assert unpack(await backend.send(notebook.id, request)) == 1
