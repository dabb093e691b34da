"""How often is a call run that was sent more than once, or whose reply was lost?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import ObjectReset, RequestReused
from actors.runtime.call import unpack
from actors.runtime.namespace import RESETS_REPEATED_MAX, Stub
from actors.testing import Lab
from tests.conformance.classes import Desk
from tests.conformance.support import Backend, call_of, ticks
from tests.objects import Refusal


class ExactlyOnce:
    """Everywhere."""

    @staticmethod
    async def request(backend: Backend, desk: Stub[Desk], method: str, *args: Any, request_id: str = "r1") -> Any:
        return unpack(await backend.send(desk.id, call_of(desk, method, *args, request_id=request_id)))

    async def test_a_repeat_answers_what_the_first_did_whatever_came_between(
        self, backend: Backend, desk: Stub[Desk]
    ) -> None:
        assert await self.request(backend, desk, "append", "x") == 1
        await desk.add("y")
        assert await self.request(backend, desk, "append", "x") == 1
        assert await desk.lines() == ["x", "y"]

    async def test_repeats_that_come_together_are_done_once(self, backend: Backend, desk: Stub[Desk]) -> None:
        replies = await asyncio.gather(*[self.request(backend, desk, "append", "x") for _ in range(50)])
        assert replies == [1] * 50
        assert await desk.lines() == ["x"]

    async def test_other_ids_are_other_requests(self, backend: Backend, desk: Stub[Desk]) -> None:
        ids = ["r1", "r2", "R1", "r1 ", ""]
        replies = [await self.request(backend, desk, "append", "x", request_id=each) for each in ids]
        assert replies == [1, 2, 3, 4, 5]

    async def test_the_same_id_means_something_else_to_another_object(self, backend: Backend, desk: Stub[Desk]) -> None:
        other = backend.namespace(Desk).get("demo", desk.id.name)
        assert await self.request(backend, desk, "append", "x") == 1
        assert await self.request(backend, other, "append", "y") == 1
        assert await other.lines() == ["y"]

    async def test_an_id_with_other_arguments_is_refused(self, backend: Backend, desk: Stub[Desk]) -> None:
        await self.request(backend, desk, "append", "x")
        with pytest.raises(RequestReused) as reused:
            await self.request(backend, desk, "append", "y")
        assert not reused.value.retryable
        assert await desk.lines() == ["x"]

    async def test_one_that_raised_was_not_done_and_is_run_again(self, backend: Backend, desk: Stub[Desk]) -> None:
        with pytest.raises(Refusal):
            await self.request(backend, desk, "append_and_raise", "x")
        assert await self.request(backend, desk, "append", "x") == 1

    async def test_a_repeat_changes_no_alarm(self, backend: Backend, desk: Stub[Desk]) -> None:
        far = 9_000_000_000.0
        assert await self.request(backend, desk, "append_and_set_alarm", "x", far) == 1
        await desk.delete_alarm()
        assert await self.request(backend, desk, "append_and_set_alarm", "x", far) == 1
        assert await desk.alarm_at() is None

    @pytest.mark.parametrize("resets", [1, RESETS_REPEATED_MAX])
    async def test_the_stub_repeats_a_request_that_ended_in_a_reset_of_its_object(
        self, desk: Stub[Desk], tmp_path: Path, resets: int
    ) -> None:
        runs = tmp_path / "runs"
        assert await desk.append_after_resets("x", runs, resets) == 1
        assert runs.stat().st_size == resets + 1
        assert await desk.lines() == ["x"]

    async def test_the_stub_repeats_an_idempotent_async_method_too(self, desk: Stub[Desk], tmp_path: Path) -> None:
        await desk.put_after_resets("k", tmp_path / "runs", 1)
        assert await desk.get("k") == "put"

    async def test_a_stub_within_an_object_repeats_as_well(
        self, backend: Backend, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        name = f"{desk.id.name}-other"
        assert await desk.have_appended_after_resets(name, "x", tmp_path / "runs", 2) == 1
        assert await backend.namespace(Desk).get("acme", name).lines() == ["x"]

    async def test_an_object_that_is_reset_every_time_is_asked_a_few_times_and_no_more(
        self, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        runs = tmp_path / "runs"
        with pytest.raises(ObjectReset):
            await desk.append_after_resets("x", runs, 1_000)
        assert runs.stat().st_size == 1 + RESETS_REPEATED_MAX

    async def test_a_method_without_a_mark_is_not_repeated_after_a_reset(
        self, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        runs = tmp_path / "runs"
        with pytest.raises(ObjectReset):
            await desk.add_after_resets("x", runs, 1)
        assert runs.stat().st_size == 1

    async def test_the_reset_of_an_object_that_was_called_does_not_have_the_caller_run_again(
        self, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        runs, name = tmp_path / "runs", f"{desk.id.name}-other"
        with pytest.raises(ObjectReset) as reset:
            await desk.have_added_after_resets(name, runs, tmp_path / "runs of other")
        assert reset.value.object_key == f"Desk/acme:{name}"
        assert runs.stat().st_size == 1


class TestExactlyOnce(ExactlyOnce):
    """In process."""

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_a_reply_that_a_crash_swallowed_is_asked_for_again(self, lab: Lab, reached_disk: bool) -> None:
        desk = lab.get(Desk, "acme", "d")
        for number in range(1, 4):
            lab.crash_in_next_commit(desk, reached_disk=reached_disk)
            assert await desk.append(str(number)) == number
        assert await desk.lines() == ["1", "2", "3"]

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_a_plain_call_whose_reply_was_lost_is_left_to_its_caller(self, lab: Lab, reached_disk: bool) -> None:
        desk = lab.get(Desk, "acme", "d")
        lab.crash_in_next_commit(desk, reached_disk=reached_disk)
        with pytest.raises(ObjectReset) as reset:
            await desk.add("x")
        assert reset.value.retryable
        assert await desk.lines() == (["x"] if reached_disk else [])

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_a_request_whose_commit_failed_is_done_once_in_the_end(self, lab: Lab, reached_disk: bool) -> None:
        desk = lab.get(Desk, "acme", "d")
        lab.fail_next_commit(desk, reached_disk=reached_disk)
        with pytest.raises(ObjectReset):
            await self.request(lab, desk, "append", "x")
        assert await self.request(lab, desk, "append", "x") == 1
        assert await desk.lines() == ["x"]

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_a_stub_uses_one_id_for_all_that_it_sends(self, lab: Lab, reached_disk: bool) -> None:
        desk = lab.get(Desk, "acme", "d")
        for number in (1, 2):
            lab.fail_next_commit(desk, reached_disk=reached_disk)
            assert await desk.append("x") == number

    async def test_reads_and_repeatable_writes_are_repeated_when_their_host_is_lost(self, lab: Lab) -> None:
        desk = lab.get(Desk, "acme", "d")
        await desk.put("k", "v")
        with lab.hold_replies(desk):
            calls = [asyncio.ensure_future(call) for call in (desk.get("k"), desk.put("k", "w"), desk.append("x"))]
            await ticks()
            lab.crash()
        assert await asyncio.gather(*calls) == [calls[0].result(), None, 1]
        assert calls[0].result() in ("v", "w")
        assert await desk.get("k") == "w"
        assert await desk.lines() == ["x"]

    async def test_a_request_is_recognised_after_hibernation_and_a_crash(self, lab: Lab) -> None:
        desk = lab.get(Desk, "acme", "d")
        assert await self.request(lab, desk, "append", "x") == 1
        lab.evict(desk)
        assert await self.request(lab, desk, "append", "x") == 1
        lab.crash()
        assert await self.request(lab, desk, "append", "x") == 1
        assert await desk.lines() == ["x"]
