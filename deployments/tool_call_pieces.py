"""Which tools does an answer call, put together from the pieces that a server sends?

Promise: `whole` gives each call once, in the order in which they began, with an id that no other call of the answer or
of the conversation has, a name that every server takes back, and arguments that are text. Servers that give no `index`,
the same one to every call, no ids, the same ones again, a repeated name, or arguments that are already an object, are
understood. More calls or bytes than any answer needs end in an error.

It does not look into the arguments: who runs the tool does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from deployments.chat_request import ToolCall
from deployments.errors import ModelUnavailable

CALLS_MAX = 64
ARGUMENTS_BYTES_MAX = 256 * 1024  # of all calls of one answer
RETRY_AFTER_S = 1.0
#: What is kept as a call's id; another is replaced.
_ID = re.compile(r"[!-~]{1,128}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
NAME_CHARS_MAX = 64
# An answer that ended for one of these was cut: its last call may be half a call.
_CUT = frozenset({"length", "content_filter"})


@dataclass
class _Begun:
    id: str | None
    index: int | None
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class ToolCallPieces:
    """The calls of one answer so far.

    Args:
        taken_ids: Those of the calls that the conversation holds already.
    """

    def __init__(self, taken_ids: Iterable[str]) -> None:
        self._taken = set(taken_ids)
        self._begun: list[_Begun] = []
        self._arguments_bytes = 0

    def take(self, pieces: object) -> bool:
        """Adds what one chunk of the stream says of calls. False if it says nothing."""
        if not isinstance(pieces, list) or not pieces:
            return False
        for piece in pieces:
            self._add(piece)
        return True

    def whole(self, finish_reason: str) -> list[ToolCall]:
        """The calls of an answer that ended so."""
        calls: list[ToolCall] = []
        for begun in self._begun:
            arguments = clean("".join(begun.arguments))
            if finish_reason in _CUT and arguments_of(arguments) is None:
                continue
            if not begun.name:
                raise ModelUnavailable("the server called a tool without a name", RETRY_AFTER_S)
            # Half of the servers send nothing where there are no arguments, and the other half refuse nothing.
            calls.append(ToolCall(id=self._unique(begun.id), name=begun.name, arguments=arguments or "{}"))
        return calls

    def _add(self, piece: object) -> None:
        index, call_id = field_of(piece, "index"), field_of(piece, "id")
        function = field_of(piece, "function")
        name, arguments = field_of(function, "name"), field_of(function, "arguments")
        begun = self._begun_at(
            index if isinstance(index, int) else None,
            call_id if isinstance(call_id, str) and call_id else None,
            begins=isinstance(name, str) and bool(name),
        )
        if isinstance(name, str) and not begun.name:
            begun.name = _NOT_IN_NAMES.sub("_", name[:NAME_CHARS_MAX])
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments)
        if isinstance(arguments, str):
            self._arguments_bytes += len(arguments.encode(errors="surrogatepass"))
            if self._arguments_bytes > ARGUMENTS_BYTES_MAX:
                raise ModelUnavailable(
                    f"the arguments of the answer's calls have more than {ARGUMENTS_BYTES_MAX} bytes", RETRY_AFTER_S
                )
            begun.arguments.append(arguments)

    def _begun_at(self, index: int | None, call_id: str | None, *, begins: bool) -> _Begun:
        """The call that a piece goes on with, or a new one."""
        if index is None and call_id is None and not begins and self._begun:
            return self._begun[-1]
        for begun in self._begun:
            if call_id is not None and begun.id == call_id and begun.index == index:
                return begun
        at_index = [begun for begun in self._begun if index is not None and begun.index == index]
        # Another id and a name at the same index: a server that gives every call the same one.
        if at_index and not (begins and call_id is not None and at_index[-1].id is not None):
            return at_index[-1]
        if len(self._begun) >= CALLS_MAX:
            raise ModelUnavailable(f"the answer calls more than {CALLS_MAX} tools", RETRY_AFTER_S)
        new = _Begun(call_id, index)
        self._begun.append(new)
        return new

    def _unique(self, given: str | None) -> str:
        call_id, number = given or "", len(self._taken)
        while not _ID.fullmatch(call_id) or call_id in self._taken:
            number += 1
            call_id = f"call_{number}"
        self._taken.add(call_id)
        return call_id


def field_of(value: object, name: str) -> object:
    """A field of a JSON object; None where there is none, or the value is something else."""
    return value.get(name) if isinstance(value, dict) else None


def arguments_of(text: str) -> dict[str, object] | None:
    """What a call's arguments hold, or None where they are not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def clean(text: str) -> str:
    """Text that UTF-8 can hold: JSON can carry halves of surrogate pairs, which neither disk nor network can."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
