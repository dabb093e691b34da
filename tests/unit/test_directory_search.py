"""Does a search find the sessions whose titles hold a text, whatever its case and whatever else is in it?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils.migrations import Migrations

import actors.directory
from actors import Directory, DurableObject, LocalBackend
from actors.directory import SessionMetadata, create_tables, folded
from actors.runtime import idempotent
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub

NOW = 1_000_000_000.0
TITLES = {
    "s1": "Über Äpfel",
    "s2": "STRASSE nach Rom",
    "s3": None,
    "s4": "100% of _all_ [things]",
    "s5": "' OR 1=1; -- \"",
    "s6": "über äpfel und Birnen",
    "s7": "nul\0inside",
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = _backend(tmp_path, Directory, clock)
    yield backend
    backend.close()


@pytest.fixture
async def directory(objects: LocalBackend) -> Stub[Directory]:
    directory = objects.namespace(Directory).get("acme", "directory")
    for session_id, title in TITLES.items():
        await directory.put(_session(session_id, title))
    return directory


def _backend(folder: Path, durable_class: type[DurableObject], clock: ManualClock) -> LocalBackend:
    return LocalBackend(folder, [durable_class], settings=HostSettings(slots=4), clock=clock)


def _session(
    session_id: str, title: str | None, *, user_id: str | None = None, expires_at: float | None = None
) -> SessionMetadata:
    return {
        "id": session_id,
        "tenant": "acme",
        "user_id": user_id,
        "title": title,
        "metadata": {},
        "created_at": NOW,
        "last_active_at": NOW,
        "expires_at": expires_at,
        "message_count": 0,
    }


async def _found(directory: Stub[Directory], text: str, **options: Any) -> list[str]:
    return [session["id"] for session in (await directory.search(text, **options))["sessions"]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ÜBER äPFEL", ["s6", "s1"]),
        ("u\u0308ber", ["s6", "s1"]),  # composed of two characters
        ("straße", ["s2"]),
        ("ROM", ["s2"]),
        ("%", ["s4"]),
        ("_", ["s4"]),
        ("[things]", ["s4"]),
        ("*", []),
        ("' or 1=1; --", ["s5"]),
        ("inside", ["s7"]),
        ("\0", ["s7"]),
        ("nowhere", []),
    ],
)
async def test_what_is_looked_for_is_text_in_any_case(directory: Stub[Directory], text: str, found: list[str]) -> None:
    assert await _found(directory, text) == found


async def test_a_title_that_changes_or_goes_is_found_as_it_is_now(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1", "Pears"))
    await directory.put(_session("s6", None))
    assert await _found(directory, "äpfel") == []
    assert await _found(directory, "PEARS") == ["s1"]
    await directory.note_activity([{"id": "s1", "last_active_at": NOW + 1, "expires_at": None, "message_count": 1}])
    assert await _found(directory, "pears") == ["s1"]


async def test_a_search_keeps_to_the_user_the_page_and_what_has_not_expired(
    directory: Stub[Directory], clock: ManualClock
) -> None:
    await directory.put(_session("t1", "apple one", user_id="ann"))
    await directory.put(_session("t2", "apple two", user_id="bob", expires_at=NOW + 5))
    await directory.put(_session("t3", "Apple three", user_id="ann"))
    assert await _found(directory, "APPLE") == ["t3", "t2", "t1"]
    assert await _found(directory, "apple", user_id="ann") == ["t3", "t1"]
    assert await _found(directory, "apple", after="t3") == ["t2", "t1"]
    first = await directory.search("apple", limit=1)
    assert ([one["id"] for one in first["sessions"]], first["has_more"]) == (["t3"], True)
    clock.advance(5)
    assert await _found(directory, "apple") == ["t3", "t1"]


async def test_one_call_looks_at_a_part_and_says_where_to_go_on(
    directory: Stub[Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors.directory, "SEARCHED_AT_ONCE_MAX", 2)
    part = await directory.search("äpfel")
    assert ([one["id"] for one in part["sessions"]], part["searched_to"]) == (["s6"], "s6")
    part = await directory.search("äpfel", after="s6")
    assert (part["sessions"], part["searched_to"]) == ([], "s4")
    part = await directory.search("äpfel", after="s2")
    assert ([one["id"] for one in part["sessions"]], part["searched_to"]) == (["s1"], None)


async def test_entries_from_before_there_was_a_search_are_found(tmp_path: Path, clock: ManualClock) -> None:
    old_migrations = Migrations("directory")
    old_migrations()(create_tables)

    class OldDirectory(DurableObject):
        migrations = old_migrations

        @idempotent
        def put(self, session_id: str, title: str | None) -> None:
            self.storage.sql(
                "INSERT INTO session VALUES (?, NULL, ?, '{}', ?, ?, NULL, 0)", session_id, title, NOW, NOW
            )

    OldDirectory.__name__ = OldDirectory.__qualname__ = "Directory"
    before = _backend(tmp_path, OldDirectory, clock)
    old = before.namespace(OldDirectory).get("acme", "directory")
    await old.put("s1", "Über Äpfel")
    await old.put("s2", None)
    before.close()

    now = _backend(tmp_path, Directory, clock)
    directory = now.namespace(Directory).get("acme", "directory")
    assert await _found(directory, "ÄPFEL") == ["s1"]
    assert [one["id"] for one in (await directory.page())["sessions"]] == ["s2", "s1"]
    now.close()


def test_folding_is_done_once_and_for_all() -> None:
    for text in ("\u0130stanbul", "\ufb03", "\u03d3", "\u03a9", "\u00df", "\u01c5", "\u0345\u03b1"):
        assert folded(folded(text)) == folded(text)
