"""Whatever strings clients send: does each pair of ids have names and files of its own, inside the data directory?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from actors.runtime import InvalidArgument, sqlite
from actors.runtime.connection import ObjectConnection
from actors.runtime.object_id import STEM_BYTES_MAX, ObjectId


def create_table(connection: ObjectConnection) -> None:
    connection.run_own("CREATE TABLE t (a)")


TEMPLATE = sqlite.prepare_template(create_table)
OBJECTS_DIR = Path("/data/objects")
SLOTS = 256

#: Characters that mean something to paths, to the encoding, to SQLite's URIs or to file systems that ignore case.
TRICKY = st.sampled_from(
    [*"aAzZ0.:/%\\?#-_~@+=, \0\n\t\r\x7f", "ß", "SS", "İ", "\u0131", "K", "k", "\u017f", "é", "e\u0301"]
)
ANY_CHARACTER = st.characters(exclude_categories=())  # lone surrogates too
PART = st.one_of(
    st.lists(TRICKY, min_size=1, max_size=8).map("".join),
    st.text(ANY_CHARACTER, min_size=1, max_size=12),
    st.sampled_from([".", "..", "%", "%25", "%2e", "%2E", "%3a", ":", "::", "/", "a:b", "A%3ab", "\ud800", "\udc00"]),
    # Parts that encode alike, one letter apart in case or in an escape.
    st.text("aA%2eE.", min_size=1, max_size=6),
)
CLASS = st.sampled_from(["A", "a", "Chat", "ChatSession"])
ID = st.tuples(CLASS, PART, PART)


def accepted(parts: tuple[str, str, str]) -> ObjectId:
    try:
        return ObjectId(*parts)
    except InvalidArgument:
        assume(False)
        raise


@given(ID, ID)
@example(("A", "a:b", "c"), ("A", "a", "b:c"))
@example(("A", "a", "B"), ("A", "a", "b"))
@example(("A", "a", "%42"), ("A", "a", "B"))
@example(("A", "a", "%42"), ("A", "a", "%4"))
@example(("A", "é", "x"), ("A", "É", "x"))
@example(("A", "\ud800", "x"), ("A", "\ufffd", "x"))
def test_no_two_ids_share_a_name_or_a_file(
    first_parts: tuple[str, str, str], second_parts: tuple[str, str, str]
) -> None:
    assume(first_parts != second_parts)
    first, second = accepted(first_parts), accepted(second_parts)
    assert str(first) != str(second)
    assert first.path(OBJECTS_DIR, SLOTS) != second.path(OBJECTS_DIR, SLOTS)
    if first.class_name == second.class_name:
        assert first.key != second.key
        # Nor where the file system ignores case.
        assert first.stem.casefold() != second.stem.casefold()


@given(ID)
def test_key_and_stem_read_back_as_the_id(parts: tuple[str, str, str]) -> None:
    object_id = accepted(parts)
    assert ObjectId.from_key(object_id.class_name, object_id.key) == object_id
    assert ObjectId.from_key(object_id.class_name, object_id.stem) == object_id


@given(ID, st.integers(1, 1000))
def test_no_file_leaves_the_data_directory(parts: tuple[str, str, str], slots: int) -> None:
    path = accepted(parts).path(OBJECTS_DIR, slots)
    assert os.path.normpath(path) == str(path)
    inside = path.relative_to(OBJECTS_DIR).parts
    assert len(inside) == 3
    assert inside[0] == parts[0]
    assert 0 <= int(inside[1]) < slots


@given(ID)
def test_names_are_printable_ascii(parts: tuple[str, str, str]) -> None:
    object_id = accepted(parts)
    for name in (object_id.key, object_id.stem):
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set("/\\ \"'?#")
        assert name.count(":") == 1


@given(ID)
def test_all_that_belongs_to_an_object_has_a_file_name_of_legal_length(parts: tuple[str, str, str]) -> None:
    path = accepted(parts).path(OBJECTS_DIR, SLOTS)
    for name in (path.name + "-journal", path.name + "-wal", path.with_suffix(".lock").name):
        assert len(os.fsencode(name)) <= 255


@given(PART, st.integers(1, 300))
def test_an_id_is_refused_when_and_only_when_it_is_too_long(part: str, times: int) -> None:
    encoded = len(ObjectId("A", "t", part).stem) - len("t:")
    assume(encoded)
    if len("t:") + encoded * times <= STEM_BYTES_MAX:
        assert len(ObjectId("A", "t", part * times).stem) <= STEM_BYTES_MAX
    else:
        with pytest.raises(InvalidArgument) as refused:
            ObjectId("A", "t", part * times)
        assert refused.value.field == "name"
        assert len(str(refused.value)) < 300


@given(ID, st.integers(1, 1000))
def test_a_slot_is_a_matter_of_the_id_alone(parts: tuple[str, str, str], slots: int) -> None:
    object_id = accepted(parts)
    assert object_id.slot(slots) == ObjectId.from_key(parts[0], object_id.key).slot(slots)


def test_slots_are_what_they_were_when_the_first_files_were_written() -> None:
    # Files are found through these numbers: they must be the same in every version.
    ids = [ObjectId("ChatSession", "acme", "s1"), ObjectId("TokenBucket", "demo", "sk:1"), ObjectId("A", "ö", "Ä/..")]
    assert [object_id.slot(256) for object_id in ids] == [30, 197, 249]


def test_objects_spread_over_the_slots() -> None:
    counts = [0] * 16
    for number in range(1600):
        counts[ObjectId("A", "acme", str(number)).slot(16)] += 1
    assert min(counts) > 50
    assert max(counts) < 150


@pytest.mark.parametrize("parts", [("", "t", "n"), ("1A", "t", "n"), ("A/b", "t", "n"), ("A" * 65, "t", "n")])
def test_a_class_name_that_is_no_identifier_is_refused(parts: tuple[str, str, str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        ObjectId(*parts)
    assert refused.value.field == "class_name"


@pytest.mark.parametrize(("tenant", "name", "field"), [("", "n", "tenant"), ("t", "", "name")])
def test_an_empty_part_is_refused(tenant: str, name: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        ObjectId("A", tenant, name)
    assert refused.value.field == field


@pytest.mark.parametrize("key", ["", "tenant", ":", "a:", ":b", "a:%ff"])
def test_a_key_that_no_id_has_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgument):
        ObjectId.from_key("A", key)


@given(PART)
@example("a?mode=memory#x%00")
def test_sqlite_opens_the_file_of_that_very_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = accepted(("A", "t", name)).path(tmp_path_factory.mktemp("objects"), SLOTS)
    sqlite.create(path, TEMPLATE)
    connection = sqlite.connect(path)
    connection.execute("INSERT INTO t VALUES (1)")
    assert sqlite.wal_of(path).exists()
    connection.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
