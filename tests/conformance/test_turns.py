"""What is a turn: in which order do calls run, what do they share, and what comes back?"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import InvalidArgument, ObjectFailed, ObjectNotFound, RequestReused
from actors.runtime.call import unpack
from actors.runtime.namespace import Namespace, Stub
from tests.conformance.support import call_of, outcomes_of
from tests.objects import Ledger, Notebook, Refusal, gate_in


class Turns:
    """Everywhere."""

    @pytest.fixture
    def notebooks(self, backend: Any) -> Namespace[Notebook]:
        notebooks: Namespace[Notebook] = backend.namespace(Notebook)
        return notebooks

    @pytest.fixture
    def notebook(self, notebooks: Namespace[Notebook]) -> Stub[Notebook]:
        return notebooks.get("acme", f"n-{secrets.token_hex(6)}")

    async def test_what_a_turn_wrote_is_there_for_the_next(self, notebook: Stub[Notebook]) -> None:
        assert await notebook.add("a") == 1
        await notebook.put("k", "v")
        assert await notebook.lines() == ["a"]
        assert await notebook.get("k") == "v"

    async def test_objects_of_other_names_tenants_and_classes_share_nothing(self, backend: Any) -> None:
        name = secrets.token_hex(6)
        notebooks, ledgers = backend.namespace(Notebook), backend.namespace(Ledger)
        stubs = [
            notebooks.get("acme", name),
            notebooks.get("demo", name),
            notebooks.get("acme", name.upper() + "X"),
            notebooks.get("acme", name + "x"),
            ledgers.get("acme", name),
        ]
        await asyncio.gather(*[stub.add(str(stub.id)) for stub in stubs])
        assert await asyncio.gather(*[stub.lines() for stub in stubs]) == [[str(stub.id)] for stub in stubs]

    @pytest.mark.parametrize("name", ["../../up", "a/b", "a:b", "%2e", "\0", "ö\ud800", "Ähm 💾", "." * 40])
    async def test_any_string_names_an_object(self, notebooks: Namespace[Notebook], name: str) -> None:
        stub = notebooks.get("acme", name)
        await stub.put("name", ascii(name))
        assert await stub.notes() == {"name": ascii(name)}

    async def test_calls_of_one_caller_run_in_order(self, notebook: Stub[Notebook]) -> None:
        numbers = await asyncio.gather(*[notebook.add(str(number)) for number in range(600)])
        assert numbers == list(range(1, 601))
        assert await notebook.lines() == [str(number) for number in range(600)]

    async def test_calls_of_very_different_sizes_run_in_order(self, notebook: Stub[Notebook]) -> None:
        texts = [("x" * 400_000 if number % 97 == 0 else "") + str(number) for number in range(400)]
        await asyncio.gather(*[notebook.add(text) for text in texts])
        assert [line.lstrip("x") for line in await notebook.lines()] == [text.lstrip("x") for text in texts]

    async def test_a_turn_that_raises_undoes_its_own_writes_only(self, notebook: Stub[Notebook]) -> None:
        outcomes = await outcomes_of(
            notebook.add("a"),
            notebook.add_and_raise("b", Refusal("no", 1)),
            notebook.add("c"),
            notebook.add_and_raise("d", Refusal("no", 2)),
            notebook.add("e"),
        )
        assert [type(outcome) for outcome in outcomes] == [int, Refusal, int, Refusal, int]
        assert await notebook.lines() == ["a", "c", "e"]

    async def test_a_first_turn_that_raises_leaves_those_that_follow(self, notebook: Stub[Notebook]) -> None:
        first, second = await outcomes_of(notebook.add_and_raise("a", Refusal("no", 1)), notebook.add("b"))
        assert isinstance(first, Refusal)
        assert second == 1
        assert await notebook.lines() == ["b"]

    async def test_an_authors_error_arrives_with_its_fields(self, notebook: Stub[Notebook]) -> None:
        with pytest.raises(Refusal) as refusal:
            await notebook.add_and_raise("a", Refusal("not today", 7))
        assert type(refusal.value) is Refusal
        assert (refusal.value.reason, refusal.value.code) == ("not today", 7)

    async def test_a_runtime_error_arrives_with_its_fields(self, notebook: Stub[Notebook]) -> None:
        with pytest.raises(ObjectNotFound) as missing:
            await notebook.add_and_raise("a", ObjectNotFound("Notebook/acme:x"))
        assert type(missing.value) is ObjectNotFound
        assert missing.value.object_key == "Notebook/acme:x"

    @pytest.mark.parametrize(
        ("method", "error", "message"),
        [
            ("add_and_raise_unprintable", "Unprintable", "an error that can't be shown"),
            ("add_and_raise_what_loses_fields", "FieldsLost", "first"),
            ("add_and_return_unpicklable", "TypeError", "this can't be pickled"),
            ("add_and_return_unpicklable_later", "TypeError", "this can't be pickled"),
        ],
    )
    async def test_what_cannot_travel_arrives_as_object_failed_and_is_undone(
        self, notebook: Stub[Notebook], method: str, error: str, message: str
    ) -> None:
        before, failure, after = await outcomes_of(
            notebook.add("before"), getattr(notebook, method)("x"), notebook.add("after")
        )
        assert (before, after) == (1, 2)
        assert isinstance(failure, ObjectFailed)
        assert (failure.error, failure.message) == (error, message)
        assert await notebook.lines() == ["before", "after"]

    @pytest.mark.parametrize("method", ["leave_process", "leave_process_later", "cancel_itself"])
    async def test_a_method_cannot_end_its_host(self, notebook: Stub[Notebook], method: str) -> None:
        pid = await notebook.pid()
        with pytest.raises(ObjectFailed, match=r"SystemExit|CancelledError"):
            await getattr(notebook, method)()
        assert await notebook.lines() == []
        assert await notebook.pid() == pid

    async def test_a_nested_transaction_undoes_only_itself(self, notebook: Stub[Notebook]) -> None:
        await notebook.add_twice_and_undo_the_second("a")
        assert await notebook.lines() == ["a"]

    async def test_a_violated_foreign_key_is_refused(self, notebook: Stub[Notebook]) -> None:
        with pytest.raises(Exception, match="FOREIGN KEY constraint failed"):
            await notebook.remark_on_nothing()

    @pytest.mark.parametrize("method", ["read_and_write", "read_and_write_later"])
    async def test_a_read_that_writes_fails_and_is_undone(self, notebook: Stub[Notebook], method: str) -> None:
        with pytest.raises(RuntimeError, match=f"{method} is declared @read and wrote"):
            await getattr(notebook, method)("x")
        assert await notebook.lines() == []

    async def test_a_read_that_deletes_fails_and_is_undone(self, notebook: Stub[Notebook]) -> None:
        await notebook.add("kept")
        with pytest.raises(RuntimeError, match="declared @read"):
            await notebook.read_and_erase()
        assert await notebook.lines() == ["kept"]

    async def test_async_turns_of_one_object_never_overlap(self, notebook: Stub[Notebook]) -> None:
        await asyncio.gather(*[notebook.add_in_steps(*[f"{turn}.{step}" for step in range(4)]) for turn in range(20)])
        assert await notebook.lines() == [f"{turn}.{step}" for turn in range(20) for step in range(4)]

    async def test_plain_turns_wait_for_an_async_turn_and_keep_their_order(
        self, notebook: Stub[Notebook], tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        await notebook.add("first")
        calls = [
            asyncio.ensure_future(call)
            for call in (notebook.add("second"), notebook.add_around_gate("third", gate), notebook.add("fourth"))
        ]
        await calls[0]
        assert not calls[2].done()
        open_gate()
        await asyncio.gather(*calls)
        assert await notebook.lines() == ["first", "second", "third before", "third after", "fourth"]

    async def test_a_slow_turn_of_one_object_delays_no_other(
        self, notebooks: Namespace[Notebook], notebook: Stub[Notebook], tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        # In one batch with the slow one, and in batches after it.
        others = [notebooks.get("acme", f"{notebook.id.name}-{number}") for number in range(10)]
        slow = asyncio.ensure_future(notebook.add_around_gate("slow", gate))
        await asyncio.gather(*[other.add("quick") for other in others])
        await asyncio.gather(*[other.add("quick") for other in others])
        assert not slow.done()
        open_gate()
        assert await slow == "slow"

    async def test_a_transaction_must_not_be_held_across_an_await(self, notebook: Stub[Notebook]) -> None:
        with pytest.raises(RuntimeError, match="must not be held open across an await"):
            await notebook.hold_transaction("x")
        assert await notebook.lines() == []
        assert await notebook.add("goes on") == 1

    async def test_a_repeated_request_answers_what_the_first_did(self, backend: Any, notebook: Stub[Notebook]) -> None:
        request = call_of(notebook, "append", "once", request_id="r1")
        replies = [await backend.send(notebook.id, request) for _ in range(3)]
        together = await asyncio.gather(*[backend.send(notebook.id, request) for _ in range(3)])
        assert [unpack(reply) for reply in (*replies, *together)] == [1] * 6
        assert await notebook.lines() == ["once"]

    async def test_a_request_id_with_other_arguments_or_method_is_refused(
        self, backend: Any, notebook: Stub[Notebook]
    ) -> None:
        unpack(await backend.send(notebook.id, call_of(notebook, "append", "once", request_id="r1")))
        for other in (
            call_of(notebook, "append", "twice", request_id="r1"),
            call_of(notebook, "append_and_raise", "once", request_id="r1"),
        ):
            with pytest.raises(RequestReused) as reused:
                unpack(await backend.send(notebook.id, other))
            assert reused.value.request_id == "r1"
        assert await notebook.lines() == ["once"]

    async def test_a_caller_may_choose_the_request_id(self, backend: Any, notebook: Stub[Notebook]) -> None:
        again = backend.namespace(Notebook).get(notebook.id.tenant, notebook.id.name)
        assert await notebook.append.once("r1")("chosen") == 1
        assert await notebook.append("another") == 2
        assert await again.append.once("r1")("chosen") == 1
        with pytest.raises(RequestReused):
            await notebook.append.once("r1")("something else")
        assert await notebook.lines() == ["chosen", "another"]

    async def test_equal_arguments_are_the_same_request_however_they_came_about(self, notebook: Stub[Notebook]) -> None:
        word = "".join(["tok", "en"])
        assert await notebook.append_all.once("r1")([word, word], {"a": 1, "b": word}) == 2
        assert await notebook.append_all.once("r1")(["token", "".join(["to", "ken"])], {"b": "token", "a": 1}) == 2
        assert await notebook.lines() == ["token", "token"]

    async def test_a_request_that_raised_runs_again(self, backend: Any, notebook: Stub[Notebook]) -> None:
        for _ in range(2):
            with pytest.raises(Refusal):
                unpack(await backend.send(notebook.id, call_of(notebook, "append_and_raise", "x", request_id="r1")))
        assert unpack(await backend.send(notebook.id, call_of(notebook, "append", "x", request_id="r1"))) == 1

    async def test_an_erased_object_starts_anew(self, notebook: Stub[Notebook]) -> None:
        await notebook.add("gone")
        _, number = await asyncio.gather(notebook.add_and_erase("gone too"), notebook.add("new"))
        assert number == 1
        assert await notebook.lines() == ["new"]

    async def test_an_erasure_is_undone_when_its_turn_raises(self, notebook: Stub[Notebook]) -> None:
        await notebook.add("kept")
        with pytest.raises(Refusal):
            await notebook.erase_and_raise()
        await notebook.erase_and_undo()
        assert await notebook.lines() == ["kept"]

    async def test_a_method_that_does_not_exist_is_refused(self, backend: Any, notebook: Stub[Notebook]) -> None:
        for name in ("no_such", "_private", "_gate", "start", "helper", "migrations", "storage"):
            with pytest.raises(AttributeError, match=name):
                getattr(notebook, name)
            with pytest.raises(InvalidArgument) as refused:
                unpack(await backend.send(notebook.id, call_of(notebook, name)))
            assert refused.value.field == "method"

    async def test_a_class_that_does_not_exist_is_refused(self, backend: Any, notebook: Stub[Notebook]) -> None:
        _, *rest = call_of(notebook, "lines")
        with pytest.raises(InvalidArgument) as refused:
            unpack(await backend.send(notebook.id, ("Nothing", *rest)))
        assert refused.value.field == "class"

    async def test_arguments_and_results_are_copies(self, notebook: Stub[Notebook]) -> None:
        await notebook.put("k", "v")
        notes = await notebook.notes()
        notes["k"] = "changed"
        assert await notebook.notes() == {"k": "v"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("locking_mode", "exclusive")],
    )
    async def test_the_database_is_set_up_for_durability(self, notebook: Stub[Notebook], name: str, value: Any) -> None:
        await notebook.add("x")
        assert await notebook.pragma(name) == value


class TestTurns(Turns):
    """In process."""
