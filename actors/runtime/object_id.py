"""How is an object named, and where does it live on disk?

The one place that turns strings from outside into Ray names and paths. Every encoding is reversible, so two ids never
share a name or a file, and made of characters that can't leave the data directory, whatever the strings hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote, unquote

from actors.runtime.errors import InvalidArgument

#: A file name may have 255 bytes; SQLite appends "-journal" to "<stem>.sqlite".
STEM_BYTES_MAX = 240
CLASS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

# What needs no encoding besides letters and digits. ":" separates the parts, "%" starts an escape, "/" is a directory.
_SAFE = "-_.~@+=,"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9\-_.~@+=,]+")
_PLAIN_STEM = re.compile(r"[a-z0-9\-_.~@+=,]+")
_UPPER_OR_ESCAPE = re.compile(r"%[0-9A-F]{2}|[A-Z]")


def encode_part(part: str) -> str:
    """Percent-encodes one part of a key. Lone surrogates, which JSON can carry, survive too."""
    if _PLAIN_KEY.fullmatch(part):
        return part
    return quote(part, safe=_SAFE, errors="surrogatepass")


def decode_part(encoded: str) -> str:
    return unquote(encoded, errors="surrogatepass")


def encode_stem_part(part: str) -> str:
    """The same for file names. Character by character, so that a prefix's encoding begins what begins with it."""
    # File systems that ignore case (macOS, Windows) would let "A" and "a" share a file: a capital is escaped as well,
    # and escapes are written in lower case.
    if _PLAIN_STEM.fullmatch(part):
        return part
    return _UPPER_OR_ESCAPE.sub(
        lambda match: match[0].lower() if len(match[0]) == 3 else f"%{ord(match[0]):02x}", encode_part(part)
    )


@dataclass(frozen=True)
class ObjectId:
    """`class_name`, `tenant` and `name` of one object; any non-empty strings whose encoding is short enough.

    Raises:
        InvalidArgument: a part is empty, the class is no identifier, or the encoded key is too long.
    """

    class_name: str
    tenant: str
    name: str

    def __post_init__(self) -> None:
        if not CLASS_NAME.fullmatch(self.class_name):
            raise InvalidArgument("class_name", self.class_name, "a class name has 1 to 64 letters, digits or _")
        if not self.tenant:
            raise InvalidArgument("tenant", self.tenant, "must not be empty")
        if not self.name:
            raise InvalidArgument("name", self.name, "must not be empty")
        if len(self.stem) > STEM_BYTES_MAX:
            raise InvalidArgument(
                "name", self.name, f"tenant and name take {len(self.stem)} bytes encoded, {STEM_BYTES_MAX} at most"
            )

    @cached_property
    def key(self) -> str:
        """`tenant:name`, encoded: the Ray name of a dedicated object, within the Ray namespace `class_name`."""
        return f"{encode_part(self.tenant)}:{encode_part(self.name)}"

    @cached_property
    def stem(self) -> str:
        """The file name without its ending: distinct even where the file system ignores case."""
        return f"{encode_stem_part(self.tenant)}:{encode_stem_part(self.name)}"

    @cached_property
    def _text(self) -> str:
        return f"{self.class_name}/{self.key}"

    def __str__(self) -> str:
        return self._text

    @classmethod
    def from_key(cls, class_name: str, key: str) -> ObjectId:
        """Reads back `key` or `stem`."""
        tenant, separator, name = key.partition(":")
        if not separator:
            raise InvalidArgument("key", key, "must be tenant:name")
        try:
            return cls(class_name, decode_part(tenant), decode_part(name))
        except UnicodeDecodeError:
            raise InvalidArgument("key", key, "its escapes must be UTF-8") from None

    def slot(self, slots: int) -> int:
        """Which of `slots` partitions the object belongs to. Never changes for a given number of slots."""
        digest = blake2b(str(self).encode("ascii"), digest_size=8).digest()
        return int.from_bytes(digest) % slots

    def path(self, objects_dir: Path, slots: int) -> Path:
        """The object's database. The same under every placement, so that changing one moves no file."""
        return objects_dir / self.class_name / f"{self.slot(slots):03d}" / f"{self.stem}.sqlite"
