"""Are these the arguments that a request came with before?

`fingerprint` is the same for a method and arguments that are equal, however they came about: in whatever order a dict
or set was filled, and whether or not equal parts are one object. It differs where a value or its type does, `1`, `1.0`
and `True` included. A pickle promises less, since it depends on what is shared and on what was put in first.

That holds for None, bool, int, float, str, bytes, list, tuple, dict, set, named tuples, enums and dataclasses, down to
`DEPTH_MAX`. What is none of these, or lies deeper, counts as its pickle: equal ones may differ then, unequal ones never
agree.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import pickle
import struct
from collections.abc import Callable, Iterable
from typing import Any

from actors.runtime.errors import InvalidArgument

#: Deeper than what people nest by hand, and far from what Python's own stack bears.
DEPTH_MAX = 64
_DIGEST_BYTES = 16
#: A record is compared with what came a day later, perhaps to a newer Python.
_PICKLE_PROTOCOL = 5


def fingerprint(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """
    Raises:
        InvalidArgument: the arguments are nested too deep.
    """
    try:
        encoded = _Encoder().encode((method, args, kwargs), 0)
    except RecursionError:
        raise InvalidArgument("arguments", "...", "are nested too deep") from None
    return _digest(encoded)


class _Encoder:
    """Encodes values so that what differs is encoded differently.

    A value is a tag before its bytes, and their length where that differs. A container is the digest of its parts: one
    that is used many times is encoded once on each level, or a small pickle could stand for an endless text.
    """

    __slots__ = ("_digests",)

    def __init__(self) -> None:
        # By level too: what lies too deep on one is not on another, and sharing must not decide which.
        # The values are kept with them: the id of one that is gone may become another's.
        self._digests: dict[tuple[int, int], tuple[Any, bytes]] = {}

    def encode(self, value: Any, depth: int) -> bytes:
        simple = _SIMPLE.get(type(value))
        if simple is not None:
            return simple(value)
        known = self._digests.get((id(value), depth))
        if known is None:
            known = self._digests[id(value), depth] = (value, self._container(value, depth))
        return known[1]

    def _container(self, value: Any, depth: int) -> bytes:
        kind = type(value)
        depth += 1
        if depth > DEPTH_MAX:
            return _pickled(value)
        if kind is list:
            return self._joined(b"l", value, depth)
        if kind is tuple:
            return self._joined(b"t", value, depth)
        if kind is dict:
            # A pair is one string of bytes, so that sorting keeps keys by their values.
            return _joined(b"d", sorted([self.encode(k, depth) + self.encode(v, depth) for k, v in value.items()]))
        if kind is set or kind is frozenset:
            return _joined(b"S" if kind is set else b"Z", sorted([self.encode(part, depth) for part in value]))
        if isinstance(value, enum.Enum):
            # Flags that are combined have no name of their own; other values need not be plain.
            combined = value.value if isinstance(value, enum.Flag) else None
            return self._joined(b"e", (_name(kind), value.name, combined), depth)
        if isinstance(value, tuple) and hasattr(kind, "_fields") and not getattr(value, "__dict__", None):
            return self._joined(b"n", (_name(kind), *value), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, _BUILT_IN):
            state = {field.name: getattr(value, field.name, _MISSING) for field in dataclasses.fields(value)}
            # Where it has attributes beside its fields, they are part of it.
            return self._joined(b"c", (_name(kind), state | getattr(value, "__dict__", {})), depth)
        return _pickled(value)

    def _joined(self, tag: bytes, parts: Iterable[Any], depth: int) -> bytes:
        return _joined(tag, [self.encode(part, depth) for part in parts])


class _Missing(enum.Enum):
    """Stands for a field that was never set."""

    MISSING = enum.auto()


_MISSING = _Missing.MISSING
_BUILT_IN = (str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, BaseException)


def _digest(encoded: bytes) -> bytes:
    return hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


def _joined(tag: bytes, parts: list[bytes]) -> bytes:
    # Each part says where it ends.
    return tag + _digest(b"".join(parts))


def _measured(tag: bytes, encoded: bytes) -> bytes:
    return tag + b"%d:" % len(encoded) + encoded


def _int(value: int) -> bytes:
    # Not as decimal digits, of which Python refuses to write very many.
    return _measured(b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _pickled(value: Any) -> bytes:
    return _measured(b"p", pickle.dumps(value, protocol=_PICKLE_PROTOCOL))


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


_SIMPLE: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: _int,
    float: lambda value: b"f" + struct.pack(">d", value),
    # Half of a surrogate pair is a character to Python, and arguments may hold any.
    str: lambda value: _measured(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _measured(b"b", value),
    bytearray: lambda value: _measured(b"B", value),
}
