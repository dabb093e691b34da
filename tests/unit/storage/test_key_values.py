"""Does `storage.kv` give back what it was given, and belong to its turn?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database

from actors.runtime import InvalidArgument
from actors.runtime.backend_local import LocalBackend
from actors.runtime.key_values import KEY_BYTES_MAX, KeyValues
from actors.runtime.key_values import VALUE_BYTES_MAX as KV_BYTES_MAX
from actors.runtime.namespace import Stub
from actors.runtime.schema import Schema
from actors.runtime.storage import Storage
from tests.unit.storage.shelf import Shelf


class TestKeyValues:
    """What is put is read back equal, in order, and is part of the turn."""

    @pytest.fixture
    def kv(self, storage: Storage) -> KeyValues:
        return storage.kv

    def test_a_value_is_read_back_replaced_and_deleted(self, kv: KeyValues) -> None:
        assert kv.get("k") is None
        assert kv.get("k", "default") == "default"
        kv.put("k", {"a": [1, 2.5, None, True, "ü"]})
        assert kv.get("k", "default") == {"a": [1, 2.5, None, True, "ü"]}
        kv.put("k", None)
        assert kv.get("k", "default") is None
        assert kv.delete("k")
        assert not kv.delete("k")
        assert kv.list() == {}

    def test_put_many_stores_all_or_none(self, kv: KeyValues) -> None:
        kv.put_many({"a": 1, "b": 2})
        with pytest.raises(InvalidArgument):
            kv.put_many({"a": 3, "c": b"no JSON"})
        assert kv.list() == {"a": 1, "b": 2}

    @pytest.mark.parametrize(
        "value",
        [
            b"bytes",
            (1, 2),
            {1: "a"},
            {"a": {(1,)}},
            float("nan"),
            float("inf"),
            {"a": [(1, 2)]},
            object,
            1j,
            "\ud800",
        ],
        ids=repr,
    )
    def test_what_json_would_change_or_refuse_is_refused(self, kv: KeyValues, value: Any) -> None:
        with pytest.raises(InvalidArgument, match="value: ") as refused:
            kv.put("k", value)
        assert not refused.value.retryable
        assert kv.get("k", "nothing") == "nothing"

    def test_values_without_end_are_refused(self, kv: KeyValues) -> None:
        circle: list[Any] = []
        circle.append(circle)
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for value in (circle, deep):
            with pytest.raises(InvalidArgument, match="must be what JSON can hold"):
                kv.put("k", value)

    def test_keys_and_values_have_a_largest_size(self, kv: KeyValues) -> None:
        kv.put("k" * KEY_BYTES_MAX, "x" * (KV_BYTES_MAX - 2))
        for key in ("k" * (KEY_BYTES_MAX + 1), "ü" * (KEY_BYTES_MAX // 2 + 1)):
            for attempt in (
                lambda key=key: kv.put(key, 1),
                lambda key=key: kv.get(key),
                lambda key=key: kv.delete(key),
            ):
                with pytest.raises(InvalidArgument, match="must take at most 2048 bytes"):
                    attempt()
        with pytest.raises(InvalidArgument, match="must take at most 2097152 bytes as JSON"):
            kv.put("k", "x" * (KV_BYTES_MAX - 1))
        not_keys: list[Any] = ["\ud800", 1]
        for key in not_keys:
            with pytest.raises(InvalidArgument):
                kv.put(key, 1)

    def test_a_list_takes_a_prefix_bounds_a_limit_and_a_direction(self, kv: KeyValues) -> None:
        kv.put_many({key: key for key in ("a", "a/1", "a/2", "a/3", "a0", "b")})

        def keys(*arguments: Any, **options: Any) -> list[str]:
            return list(kv.list(*arguments, **options))

        assert keys() == ["a", "a/1", "a/2", "a/3", "a0", "b"]
        assert keys("a/") == ["a/1", "a/2", "a/3"]
        assert keys("a/", reverse=True, limit=2) == ["a/3", "a/2"]
        assert keys("a/", start="a/2") == ["a/2", "a/3"]
        assert keys("a/", start_after="a/2") == ["a/3"]
        assert keys("a/", end="a/2") == ["a/1"]
        assert keys(start="a/3", end="b", reverse=True) == ["a0", "a/3"]
        assert keys("none") == keys(limit=0) == keys("a", start="b") == []
        with pytest.raises(InvalidArgument, match="must not be negative"):
            keys(limit=-1)

    @given(
        keys=st.sets(st.text("ab\0\x7f\x80\u07ff\ud7ff\ue000\uffff\U00010000\U0010ffff", max_size=4), max_size=20),
        prefix=st.text("ab\ud7ff\U0010ffff", max_size=2),
        start=st.none() | st.text("ab\uffff\U00010000", max_size=2),
        limit=st.none() | st.integers(0, 5),
        reverse=st.booleans(),
    )
    def test_a_list_is_what_sorting_by_utf_8_bytes_gives(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        schema: Schema,
        keys: set[str],
        prefix: str,
        start: str | None,
        limit: int | None,
        reverse: bool,
    ) -> None:
        storage = Storage("Shelf/acme:s", tmp_path_factory.getbasetemp() / "listed.sqlite", schema)
        storage.begin()
        storage.kv.put_many(dict.fromkeys(keys, 1))
        listed = list(storage.kv.list(prefix, start=start, limit=limit, reverse=reverse))
        storage.close()
        expected = sorted(
            (key for key in keys if key.startswith(prefix) and (start is None or key >= start)),
            key=str.encode,
            reverse=reverse,
        )
        assert listed == expected[:limit]

    async def test_entries_are_rolled_back_and_committed_with_their_turn(self, shelf: Stub[Shelf]) -> None:
        await shelf.put("kept", 1)
        with pytest.raises(ValueError, match="lost"):
            await shelf.put_and_raise("lost", 1)
        await shelf.put_and_undo("undone", "second")
        assert await shelf.keys() == ["kept", "undone"]
        assert await shelf.get("undone") == "first"
        backend = shelf._backend
        assert isinstance(backend, LocalBackend)
        assert backend.host.evict(shelf.id)
        assert await shelf.get("kept") == 1

    async def test_a_read_must_not_put(self, shelf: Stub[Shelf]) -> None:
        with pytest.raises(Exception, match="is declared @read and wrote"):
            await shelf.put_though_a_read()

    def test_values_are_json_text_in_the_file(self, storage: Storage, tmp_path: Path) -> None:
        storage.kv.put("k", {"a": "ü"})
        storage.commit()
        storage.close()
        with Database(tmp_path / "s.sqlite") as left:
            ((text,),) = left.execute("SELECT value FROM _mobula_kv").fetchall()
        assert text == '{"a":"ü"}'
        assert json.loads(text) == {"a": "ü"}
