"""Which object's code did a host run when its process died?

A host marks what it is about to run in a file that is mapped into memory. A process that dies (a segmentation fault,
`os._exit`, the kernel's out-of-memory killer) takes nothing of it along: its pages are the kernel's, and the next host
reads what they say. Setting a mark is one copy of some bytes, so it can be done for every turn.

A power cut may lose the mark, which costs one strike. Only the owner of the objects may open the file, and only once it
has its slots: until then the mark may be that of a host which lives.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import zlib
from pathlib import Path

from actors.runtime.errors import InvalidArgument
from actors.runtime.object_id import ObjectId

logger = logging.getLogger("mobula.objects")

#: Class (64), stem (240) and method (200) with what is around them come to 514 bytes at most.
SIZE_BYTES = 1024
METHOD_BYTES_MAX = 200
#: Stands for a method while an object's own code makes it resident: its migrations, its constructor and `start`. No
#: method that a stub may call has this name.
ACTIVATION = "start"

# One byte that says whether there is a mark, a checksum of it, its length. Then the mark.
_HEAD = struct.Struct(">BIH")
_NONE = bytes(_HEAD.size)
_MARK_BYTES_MAX = SIZE_BYTES - _HEAD.size


def bounded_method(method: str) -> str:
    """The name as marks and records have it: itself, unless it is absurdly long."""
    return method.encode(errors="replace")[:METHOD_BYTES_MAX].decode(errors="ignore")


def encode_mark(object_id: ObjectId, method: str) -> bytes:
    """What `RunningMark.set` takes: class, stem and method, each ended by a zero byte but the last."""
    return f"{object_id.class_name}\0{object_id.stem}\0{bounded_method(method)}".encode()


class RunningMark:
    """The mark of one host. Where its file can't be had it marks nothing, says so in the log, and the host goes on.

    A mark that was half set when the process died has a wrong checksum, and reads as none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._page: mmap.mmap | bytearray
        try:
            self._page = _map(path)
        except (OSError, ValueError) as error:
            logger.error("path=%s an object that crashes its host will not be recognised: %s", path, error)
            self._page = bytearray(SIZE_BYTES)

    def set(self, mark: bytes) -> None:
        """The code of an object begins to run.

        Args:
            mark: from `encode_mark`, or put together as it does.
        """
        marked = _HEAD.pack(1, zlib.crc32(mark), len(mark)) + mark
        if len(marked) > SIZE_BYTES:
            return self.set(mark[:_MARK_BYTES_MAX])
        self._page[: len(marked)] = marked

    def clear(self) -> None:
        """No object's code is running."""
        # Not the first byte alone: the next mark, half set, would bring back the one before.
        self._page[: _HEAD.size] = _NONE

    def read(self) -> tuple[ObjectId, str] | None:
        """The object and the method that are marked. None if there are none, or if the file is anything else."""
        page = bytes(self._page)
        is_set, checksum, length = _HEAD.unpack_from(page)
        mark = page[_HEAD.size : _HEAD.size + length]
        if is_set != 1 or zlib.crc32(mark) != checksum:
            return None
        try:
            class_name, stem, method = mark.split(b"\0")
            return ObjectId.from_key(class_name.decode(), stem.decode()), bounded_method(method.decode(errors="ignore"))
        except (ValueError, InvalidArgument):  # a checksum that fits by chance, or a mark of other code
            return None

    def close(self, *, remove: bool = False) -> None:
        """Clears the mark and lets the file go. With `remove` its file goes as well, for hosts that come and go.

        What ends later and clears its mark then does no harm.
        """
        self.clear()
        page, self._page = self._page, bytearray(SIZE_BYTES)
        if isinstance(page, mmap.mmap):
            page.close()
        if remove:
            self._path.unlink(missing_ok=True)


def _map(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        missing = SIZE_BYTES - os.fstat(descriptor).st_size
        if missing > 0:
            # Written and not just made longer: a full disk is to be met here, and not as SIGBUS in a turn.
            written = os.pwrite(descriptor, bytes(missing), SIZE_BYTES - missing)
            if written < missing:
                raise OSError(f"only {written} of {missing} bytes could be written")
        return mmap.mmap(descriptor, SIZE_BYTES)
    finally:
        os.close(descriptor)
