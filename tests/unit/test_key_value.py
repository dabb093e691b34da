"""Does a key give back what was put under it, for as long as it should, and are lists exact?"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import InvalidArgument, KeyValue, LocalBackend
from actors.key_value import KEY_CHARS_MAX, LIST_MAX, VALUE_BYTES_MAX
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from tests.unit.objects_fixtures import Hibernating


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Stub[KeyValue]]:
    backend = request.param(tmp_path, [KeyValue], settings=HostSettings(slots=4), clock=clock)
    yield backend.namespace(KeyValue).get("acme", "kv")
    backend.close()


async def _keys(store: Stub[KeyValue], prefix: str = "", **options: Any) -> list[str]:
    return [item["key"] for item in await store.list(prefix, **options)]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


async def test_a_key_that_was_never_put_is_none(store: Stub[KeyValue]) -> None:
    assert await store.get("nothing") is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1.5,
        2**100,
        "",
        "naïve 日本語 🐟",
        "a\0b",
        "half \ud83d",
        [],
        {},
        {"a": [1, {"b": None}], "": False},
        _nested(200),
    ],
)
async def test_what_was_put_comes_back(store: Stub[KeyValue], clock: ManualClock, value: Any) -> None:
    item = await store.put("key", value)
    assert item == {"key": "key", "value": value, "updated_at": clock.now(), "expires_at": None}
    assert await store.get("key") == item
    assert type((await store.get("key"))["value"]) is type(value)


async def test_a_put_replaces_the_value_its_time_and_its_expiry(store: Stub[KeyValue], clock: ManualClock) -> None:
    await store.put("key", "old", ttl_s=10)
    clock.advance(5)
    await store.put("key", "new")
    clock.advance(100)
    item = await store.get("key")
    assert item == {"key": "key", "value": "new", "updated_at": clock.now() - 100, "expires_at": None}
    assert await _keys(store) == ["key"]


@pytest.mark.parametrize("key", ["x" * KEY_CHARS_MAX, "🐟" * KEY_CHARS_MAX, "a\0b", " ", "../../etc/passwd", "'"])
async def test_any_text_of_the_right_length_is_a_key(store: Stub[KeyValue], key: str) -> None:
    await store.put(key, 1)
    await store.put(key[:-1] + "other"[: KEY_CHARS_MAX - len(key) + 1], 2)
    assert (await store.get(key))["value"] == 1
    assert await store.delete(key) is True
    assert await store.get(key) is None


@pytest.mark.parametrize("key", ["", "x" * (KEY_CHARS_MAX + 1)])
async def test_a_key_of_the_wrong_length_is_refused(store: Stub[KeyValue], key: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await store.put(key, 1)
    assert raised.value.field == "key"
    assert await _keys(store) == []


async def test_keys_with_a_lone_surrogate_are_refused(store: Stub[KeyValue]) -> None:
    for call in (store.put("\ud800", 1), store.get("\ud800"), store.delete("\ud800"), store.list("\ud800")):
        with pytest.raises(InvalidArgument, match="surrogates"):
            await call


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, {"a": [-math.inf]}, {math.nan: 1}, b"bytes", {1, 2}, 10**5000],
    ids=["nan", "inf", "nested inf", "nan key", "bytes", "set", "number of 5000 digits"],
)
async def test_a_value_that_is_not_json_is_refused_and_the_old_one_stays(store: Stub[KeyValue], value: Any) -> None:
    await store.put("key", "old")
    with pytest.raises(InvalidArgument) as raised:
        await store.put("key", value)
    assert raised.value.field == "value"
    assert (await store.get("key"))["value"] == "old"


async def test_a_value_may_have_a_megabyte_and_no_more(store: Stub[KeyValue]) -> None:
    largest = "x" * (VALUE_BYTES_MAX - 2)
    await store.put("key", largest)
    with pytest.raises(InvalidArgument) as raised:
        await store.put("key", largest + "x")
    assert raised.value.field == "value"
    assert (await store.get("key"))["value"] == largest


async def test_a_value_is_gone_when_its_time_has_passed(store: Stub[KeyValue], clock: ManualClock) -> None:
    item = await store.put("key", 1, ttl_s=10)
    assert item["expires_at"] == clock.now() + 10
    clock.advance(9.5)
    assert await store.get("key") == item
    assert await _keys(store) == ["key"]
    clock.advance(0.5)
    assert await store.get("key") is None
    assert await _keys(store) == []
    assert await store.delete("key") is False


async def test_a_value_without_time_to_live_stays(store: Stub[KeyValue], clock: ManualClock) -> None:
    await store.put("key", 1)
    clock.advance(100 * 365 * 86_400)
    assert await _keys(store) == ["key"]


@pytest.mark.parametrize("ttl_s", [-1, math.nan, math.inf])
async def test_a_time_to_live_that_is_no_time_is_refused(store: Stub[KeyValue], ttl_s: float) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await store.put("key", 1, ttl_s=ttl_s)
    assert raised.value.field == "ttl_s"
    assert await store.get("key") is None


async def test_later_puts_remove_what_expired(tmp_path: Path, clock: ManualClock) -> None:
    backend = LocalBackend(tmp_path, [KeyValue], settings=HostSettings(slots=4), clock=clock)
    store = backend.namespace(KeyValue).get("acme", "kv")
    for number in range(20):
        await store.put(f"short {number}", 1, ttl_s=1)
    clock.advance(1)
    for number in range(3):
        await store.put(f"long {number}", 1)
    # Turned back, the clock would show values that expired and were not removed.
    clock.set_wall(clock.now() - 1)
    assert await _keys(store) == ["long 0", "long 1", "long 2"]
    backend.close()


async def test_the_keys_put_longest_ago_leave(store: Stub[KeyValue], clock: ManualClock) -> None:
    for key in ("a", "b", "c", "b", "d"):
        clock.advance(1)
        await store.put(key, 1, keep_newest=3)
    assert await _keys(store) == ["b", "c", "d"]
    clock.advance(1)
    await store.put("e", 1, keep_newest=1)
    assert await _keys(store) == ["e"]


async def test_without_a_number_to_keep_none_leaves(store: Stub[KeyValue], clock: ManualClock) -> None:
    for key in ("a", "b", "c"):
        await store.put(key, 1, keep_newest=None)
    assert await _keys(store) == ["a", "b", "c"]


async def test_a_key_just_put_stays_though_another_has_the_same_time(store: Stub[KeyValue]) -> None:
    await store.put("z", 1, keep_newest=1)
    await store.put("a", 1, keep_newest=1)
    assert await _keys(store) == ["a"]


async def test_a_key_just_put_stays_though_the_clock_went_back(store: Stub[KeyValue], clock: ManualClock) -> None:
    await store.put("a", 1)
    await store.put("b", 1)
    clock.set_wall(clock.now() - 3600)
    await store.put("c", 1, keep_newest=2)
    assert "c" in await _keys(store)
    assert len(await _keys(store)) == 2


async def test_delete_says_if_the_key_was_there(store: Stub[KeyValue]) -> None:
    assert await store.delete("key") is False
    await store.put("key", 1)
    await store.put("kez", 1)
    assert await store.delete("key") is True
    assert await store.delete("key") is False
    assert await _keys(store) == ["kez"]


async def test_a_prefix_is_taken_literally(store: Stub[KeyValue]) -> None:
    every = ["%", "%a", "_x", "a", "a%", "a_", "ab", "A", "é", "é1", "e\u0301", "n", "n\0", "n\0x", "no"]
    for key in [*every, "\uffff", "\U0010ffff", "\U0010ffff\U0010ffff"]:
        await store.put(key, 1)
    expected: dict[str, list[str]] = {
        "%": ["%", "%a"],
        "_": ["_x"],
        "a": ["a", "a%", "a_", "ab"],
        "a%": ["a%"],
        "a_": ["a_"],
        "A": ["A"],
        "é": ["é", "é1"],
        "e\u0301": ["e\u0301"],
        "n\0": ["n\0", "n\0x"],
        "\U0010ffff": ["\U0010ffff", "\U0010ffff\U0010ffff"],
        "*": [],
        "ab" * KEY_CHARS_MAX: [],
    }
    assert {prefix: await _keys(store, prefix) for prefix in expected} == expected


async def test_a_list_is_in_the_order_of_the_keys_code_points(store: Stub[KeyValue]) -> None:
    keys = ["b", "B", "a\0", "a", "🐟", "\uffff", "é", "10", "9"]
    for key in keys:
        await store.put(key, 1)
    assert await _keys(store) == sorted(keys)


async def test_a_list_is_paged_from_behind_a_key_that_may_be_gone(store: Stub[KeyValue]) -> None:
    for key in ("a1", "a2", "a3", "a4", "b1"):
        await store.put(key, 1)
    assert await _keys(store, "a", limit=2) == ["a1", "a2"]
    await store.delete("a2")
    assert await _keys(store, "a", limit=2, after="a2") == ["a3", "a4"]
    assert await _keys(store, "a", limit=2, after="a4") == []
    assert await _keys(store, "a", after="b") == []
    assert await _keys(store, "b", after="a1") == ["b1"]


async def test_a_list_has_at_least_one_and_at_most_a_thousand_items(store: Stub[KeyValue]) -> None:
    backend_calls = [store.put(f"{number:04d}", number) for number in range(3)]
    for call in backend_calls:
        await call
    assert await _keys(store, limit=0) == ["0000"]
    assert await _keys(store, limit=-1) == ["0000"]
    assert await _keys(store, limit=10**9) == ["0000", "0001", "0002"]


async def test_a_list_never_exceeds_its_limit(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, [KeyValue], settings=HostSettings(slots=4))
    store = backend.namespace(KeyValue).get("acme", "kv")
    for number in range(LIST_MAX + 1):
        await store.put(f"{number:04d}", number)
    assert len(await store.list(limit=10**9)) == LIST_MAX
    backend.close()


_KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


# What one example leaves in the store is a part of the next one, and of what it expects.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(_KEYS, max_size=8), prefix=st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
async def test_a_list_holds_exactly_the_keys_with_its_prefix(
    store: Stub[KeyValue], keys: list[str], prefix: str
) -> None:
    for key in keys:
        await store.put(key, 1)
    every = await _keys(store, limit=LIST_MAX)
    assert every == sorted(every)
    assert set(keys) <= set(every)
    assert await _keys(store, prefix, limit=LIST_MAX) == [key for key in every if key.startswith(prefix)]


async def test_stores_of_two_tenants_share_nothing(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, [KeyValue], settings=HostSettings(slots=4))
    stores = backend.namespace(KeyValue)
    await stores.get("acme", "kv").put("key", "secret")
    assert await stores.get("globex", "kv").get("key") is None
    assert await stores.get("globex", "kv").list() == []
    backend.close()


class TestSwap:
    """Does a value that several want to replace go to one of them?"""

    async def test_what_was_expected_is_replaced_and_anything_else_told(
        self, store: Stub[KeyValue], clock: ManualClock
    ) -> None:
        first = await store.swap("key", None, {"a": 1}, ttl_s=10)
        assert first == {"key": "key", "value": {"a": 1}, "updated_at": clock.now(), "expires_at": clock.now() + 10}
        assert await store.swap("key", None, "other") == first
        assert await store.swap("key", {"a": 2}, "other") == first
        second = await store.swap("key", {"a": 1}, {"b": 1})
        assert second == {"key": "key", "value": {"b": 1}, "updated_at": clock.now(), "expires_at": None}
        assert await store.get("key") == second

    async def test_of_many_at_once_one_wins_and_all_know_which(self, store: Stub[KeyValue]) -> None:
        swapped = await asyncio.gather(*[store.swap("key", None, number) for number in range(10)])
        assert len({item["value"] for item in swapped}) == 1

    async def test_what_expired_is_not_there(self, store: Stub[KeyValue], clock: ManualClock) -> None:
        await store.put("key", "old", ttl_s=10)
        clock.advance(10)
        assert await store.swap("key", "old", "new") is None
        assert (await store.swap("key", None, "new"))["value"] == "new"

    @pytest.mark.parametrize("other", [1.0, True, "1", [1], None])
    async def test_a_value_of_another_type_is_another_value(self, store: Stub[KeyValue], other: Any) -> None:
        await store.put("key", 1)
        assert (await store.swap("key", other, "new"))["value"] == 1

    async def test_the_order_of_an_objects_members_does_not_count(self, store: Stub[KeyValue]) -> None:
        await store.put("key", {"a": 1, "b": 2})
        assert (await store.swap("key", {"b": 2, "a": 1}, "new"))["value"] == "new"

    async def test_a_swap_that_is_repeated_swaps_once(self, store: Stub[KeyValue]) -> None:
        swap = store.swap.once("r1")
        swapped = await swap("key", None, "mine")
        await store.delete("key")
        assert await swap("key", None, "mine") == swapped
        assert await store.get("key") is None

    async def test_only_the_newest_are_kept_where_that_is_asked_for(
        self, store: Stub[KeyValue], clock: ManualClock
    ) -> None:
        for number in range(4):
            clock.advance(1)
            await store.swap(f"k{number}", None, number, keep_newest=2)
        assert await _keys(store) == ["k2", "k3"]
