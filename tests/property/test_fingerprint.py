"""Do equal arguments have one fingerprint, and different ones different ones?"""

from __future__ import annotations

import datetime
import enum
import pickle
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.call import pack_arguments, unpack_arguments
from actors.runtime.fingerprint import DEPTH_MAX, fingerprint


class Colour(enum.Enum):
    RED = "red"
    CRIMSON = "red"
    BLUE = "blue"


class Opaque(enum.Enum):
    ONE = object()
    OTHER = object()


class Level(enum.IntEnum):
    LOW = 1


class Sides(enum.Flag):
    LEFT = 1
    RIGHT = 2


class Point(NamedTuple):
    x: Any
    y: Any


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    item: Any
    tags: Any = ()


@dataclass(frozen=True)
class Loose:
    item: Any
    hidden: Any = field(default=None, compare=False)


_NAMES = st.sampled_from(["", "a", "b", "ab", "1", "\0", "🐟", "\ud83d", "\ude00"])
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("inf")]),
    _NAMES,
    st.text(st.characters(), max_size=4),
    st.sampled_from([b"", b"a", b"1:a", bytearray(b"a"), *Colour, *Level, *Sides, Sides.LEFT | Sides.RIGHT]),
)
_HASHABLE = st.one_of(st.none(), st.integers(2, 4), _NAMES, st.tuples(_NAMES, _NAMES))
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(_HASHABLE, inner, max_size=3),
        st.sets(_HASHABLE, max_size=3),
        st.frozensets(_HASHABLE, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(lambda item, tags: Order(item=item, tags=tags), inner, inner),
        st.builds(Loose, inner, inner),
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of one type all the way down; told without any encoding."""
    if type(one) is not type(other):
        return False
    match one:
        case float():
            return bool(one.hex() == other.hex())
        case enum.Enum():
            return one is other
        case list() | tuple():
            return len(one) == len(other) and all(map(same, one, other))
        case dict():
            return len(one) == len(other) and all(
                any(same(key, key2) and same(value, value2) for key2, value2 in other.items())
                for key, value in one.items()
            )
        case set() | frozenset():
            return len(one) == len(other) and all(any(same(part, part2) for part2 in other) for part in one)
        case Order():
            return same(one.item, other.item) and same(one.tags, other.tags)
        case Loose():
            return same(one.item, other.item) and same(one.hidden, other.hidden)
    return bool(one == other)


def rebuilt(value: Any) -> Any:
    """An equal value that shares nothing with it, its dicts and sets filled in the opposite order."""
    match value:
        case enum.Enum() | bool() | None:
            return value
        case str() if type(value) is str:
            return "".join(list(value))
        case Point() | Pair():
            return type(value)(*map(rebuilt, value))
        case list() | tuple():
            return type(value)(map(rebuilt, value))
        case dict():
            return {rebuilt(key): rebuilt(part) for key, part in reversed(value.items())}
        case set() | frozenset():
            return type(value)(map(rebuilt, sorted(value, key=repr, reverse=True)))
        case Order():
            return Order(item=rebuilt(value.item), tags=rebuilt(value.tags))
        case Loose():
            return Loose(rebuilt(value.item), rebuilt(value.hidden))
    return value


def nested(depth: int, innermost: Any) -> Any:
    for _ in range(depth):
        innermost = [innermost]
    return innermost


def of(*args: Any, **kwargs: Any) -> bytes:
    return fingerprint("append", args, kwargs)


@given(_VALUES, _VALUES)
def test_fingerprints_are_equal_exactly_where_the_values_are(one: Any, other: Any) -> None:
    assert (of(one) == of(other)) == same(one, other)


@given(_VALUES)
def test_neither_sharing_nor_order_counts(value: Any) -> None:
    assert of(value, value, {"a": value, "b": [value]}) == of(
        value, rebuilt(value), {"b": [rebuilt(value)], "a": rebuilt(value)}
    )


@given(st.lists(_VALUES, max_size=3), st.dictionaries(st.sampled_from(["a", "b"]), _VALUES))
def test_a_journey_changes_nothing(args: list[Any], kwargs: dict[str, Any]) -> None:
    arrived_args, arrived_kwargs = unpack_arguments(pack_arguments(tuple(args), kwargs))
    assert fingerprint("m", arrived_args, arrived_kwargs) == fingerprint("m", tuple(args), kwargs)


def test_the_method_and_how_it_is_called_count() -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("append", (), {}),
        ("appended", (), {}),
        ("append", ("a", "b"), {}),
        ("append", ("ab",), {}),
        ("append", ("asb",), {}),
        ("append", ("as1:b",), {}),
        ("append", ("a1:s1:b",), {}),
        ("append", ("a",), {"b": "b"}),
        ("append", ("a", {"b": "b"}), {}),
        ("append", (("a", "b"),), {}),
    ]
    assert len({fingerprint(*call) for call in calls}) == len(calls)


def test_pickles_of_equal_arguments_differ_which_is_why_there_are_fingerprints() -> None:
    word = "".join(["to", "ken"])
    shared, apart = (word, word), (word, "".join(["tok", "en"]))
    assert pickle.dumps(shared) != pickle.dumps(apart)
    assert of(*shared) == of(*apart)


@pytest.mark.parametrize("depth", [DEPTH_MAX - 3, DEPTH_MAX, DEPTH_MAX + 1, 200])
def test_what_lies_deep_counts_too(depth: int) -> None:
    assert of(nested(depth, 1)) == of(nested(depth, 1))
    assert of(nested(depth, 1)) != of(nested(depth, 2))
    assert of(nested(depth, 1)) != of(nested(depth + 1, 1))


def test_a_part_that_is_used_again_and_again_costs_no_more_than_once() -> None:
    value: list[Any] = []
    for _ in range(DEPTH_MAX - 2):
        value = [value, value]  # written out, it would have 2**62 parts
    assert of(value) == of(value)
    endless: list[Any] = []
    endless += [endless, endless]
    assert of(endless) != of(value)


def test_other_values_count_as_their_pickles() -> None:
    day = datetime.datetime(2020, 2, 29, tzinfo=datetime.UTC)
    assert of([day]) == of([datetime.datetime(2020, 2, 29, tzinfo=datetime.UTC)])
    assert of([day]) != of([day + datetime.timedelta(microseconds=1)])


def test_members_count_by_their_names_since_their_values_may_say_nothing() -> None:
    assert of(Opaque.ONE) == of(Opaque.ONE) != of(Opaque.OTHER)


def test_parts_that_are_made_for_the_asking_are_not_taken_for_each_other() -> None:
    many = [Loose(number, [number]) for number in range(500)]
    assert of(many) == of([rebuilt(one) for one in many])
    assert len({of([Loose(0), Loose(number)]) for number in range(500)}) == 500


def test_an_attribute_beside_the_fields_counts() -> None:
    plain, marked = Loose("a"), Loose("a")
    object.__setattr__(marked, "mark", 1)
    assert of(plain) != of(marked)


def test_what_extends_a_plain_type_is_not_that_type() -> None:
    class Word(str):
        __slots__ = ()

    globals()["Word"] = Word  # where pickle looks for it
    Word.__qualname__ = "Word"
    try:
        assert of(Word("a")) != of("a")
    finally:
        del globals()["Word"]
