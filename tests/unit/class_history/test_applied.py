"""Do the objects follow their classes, with all that stands beside them?"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.runtime.class_files import RECORD_NAME
from actors.runtime.class_history import ClassChanges, apply, check
from actors.runtime.class_migration import ClassMigration, Deletion
from tests.unit.class_history.data import BEGIN, COMPANIONS, SLOTS, Data, put_beside, second


def test_a_first_start_records_the_history_and_a_second_changes_nothing(data: Data) -> None:
    assert data.apply(BEGIN) == ClassChanges(applied=("v1",))
    recorded = data.record.read_bytes()
    data.steps.clear()
    assert data.apply(BEGIN) == ClassChanges()
    assert data.record.read_bytes() == recorded
    assert data.steps == []


def test_a_first_start_needs_no_data_directory(tmp_path: Path) -> None:
    apply(tmp_path / "new", [BEGIN], {"Apple", "Pear"}, slots=SLOTS, owner=None)
    assert (tmp_path / "new" / "objects" / RECORD_NAME).is_file()


def test_only_tags_that_are_new_are_applied(data: Data) -> None:
    data.apply(BEGIN)
    assert data.apply(BEGIN, second(new=("Fig",))).applied == ("v2",)
    assert data.apply(BEGIN, second(new=("Fig",))).applied == ()


def test_data_from_before_there_was_a_history_is_taken_as_it_is(data: Data) -> None:
    data.put("Apple", "a")
    data.apply(BEGIN)
    assert data.world() == {("Apple", "a"): "Apple a"}


def test_a_renamed_class_keeps_its_objects_each_in_the_slot_of_its_new_name(data: Data) -> None:
    data.apply(BEGIN)
    names = [f"n{number}" for number in range(50)] + ["Capital", "a.b", "ä/ö", "x.sqlite"]
    data.put("Apple", *names)
    data.put("Pear", "p")
    changes = data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert changes == ClassChanges(applied=("v2",), moved=(("Apple", "Fig", len(names)),))
    assert {key: text for key, text in data.world().items() if key[0] == "Fig"} == {
        ("Fig", name): f"Apple {name}" for name in names
    }
    assert sorted(path.name for path in data.objects_dir.iterdir()) == ["Fig", "Pear", RECORD_NAME]


def test_transferred_objects_join_those_of_the_other_class(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.put("Pear", "p")
    data.apply(BEGIN, second(transferred=(("Apple", "Pear"),)))
    assert data.world() == {("Pear", "a"): "Apple a", ("Pear", "p"): "Pear p"}


def test_a_confirmed_deletion_takes_the_objects_along_and_no_others(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a", "b")
    data.put("Pear", "p")
    changes = data.apply(BEGIN, second(deleted=(Deletion(name="Apple", confirmed=True),)))
    assert changes.moved == (("Apple", None, 2),)
    assert data.world() == {("Pear", "p"): "Pear p"}


def test_a_class_without_objects_is_deleted_without_confirmation(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.path("Apple", "a").unlink()
    data.apply(BEGIN, second(deleted=(Deletion(name="Apple"),)))
    assert not (data.objects_dir / "Apple").exists()


def test_a_write_ahead_log_goes_with_its_database(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.put("Apple", "a", ending="-wal")
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert data.path("Fig", "a", "-wal").read_text() == "Apple a-wal"


def test_no_database_meets_a_log_that_another_left(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.put("Pear", "b")
    # Left by objects that were removed: neither belongs to the database that it would stand beside.
    data.put("Pear", "a", ending="-wal")
    data.put("Apple", "b", ending="-wal")
    data.apply(BEGIN, second(transferred=(("Apple", "Pear"),)))
    assert data.world() == {("Pear", "a"): "Apple a", ("Pear", "b"): "Pear b"}
    assert data.world("-wal") == {}


def test_locks_and_unfinished_databases_stay_behind(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.path("Apple", "a").with_suffix(".lock").write_text("")
    data.path("Apple", "a").with_suffix(".new").write_text("")
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert [path.name for path in data.path("Fig", "a").parent.iterdir()] == ["acme:a.sqlite"]


@pytest.mark.parametrize("name", ["a", "a.b", "a.trouble", "a.a17"])
@pytest.mark.parametrize(
    ("target", "migration"),
    [("Fig", second(renamed=(("Apple", "Fig"),))), ("Pear", second(transferred=(("Apple", "Pear"),)))],
    ids=["renamed", "transferred"],
)
def test_alarms_and_troubles_go_with_their_object(
    data: Data, target: str, migration: ClassMigration, name: str
) -> None:
    data.apply(BEGIN)
    data.put("Apple", name)
    put_beside(data, "Apple", name, *COMPANIONS, "running", "trouble-new")
    data.apply(BEGIN, migration)
    stem = data.path(target, name).name.removesuffix(".sqlite")
    assert {path.name: path.read_text() for path in data.path(target, name).parent.iterdir()} == {
        f"{stem}.sqlite": f"Apple {name}",
        **{f"{stem}.{ending}": f"Apple {name} {ending}" for ending in COMPANIONS},
    }


def test_a_deleted_class_leaves_neither_alarms_nor_troubles(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    put_beside(data, "Apple", "a", *COMPANIONS)
    put_beside(data, "Apple", "gone", *COMPANIONS)
    data.apply(BEGIN, second(deleted=(Deletion(name="Apple", confirmed=True),)))
    assert [name for name in data.everything() if "acme:" in name] == []


def test_alarms_and_troubles_of_objects_that_are_gone_meet_no_other_object(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.put("Pear", "b", "c")
    put_beside(data, "Apple", "b", *COMPANIONS)  # of an Apple that is gone, and Pear has one of its name
    put_beside(data, "Pear", "a", *COMPANIONS)  # of a Pear that is gone, and an Apple of its name comes
    put_beside(data, "Pear", "c", *COMPANIONS)
    put_beside(data, "Apple", "a", "a1700000000001")
    data.apply(BEGIN, second(transferred=(("Apple", "Pear"),)))
    beside = {(name, ending): text for ending in COMPANIONS for (_, name), text in data.world(f".{ending}").items()}
    assert beside == {
        ("a", "a1700000000001"): "Apple a a1700000000001",
        **{("c", ending): f"Pear c {ending}" for ending in COMPANIONS},
    }


def test_a_name_can_begin_again_in_the_tag_that_renames_it(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),), new=("Apple",)))
    assert data.world() == {("Fig", "a"): "Apple a"}
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),), new=("Apple",)), classes={"Apple", "Fig", "Pear"})


def test_two_classes_can_swap_their_names(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.put("Pear", "p")
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"), ("Pear", "Apple"), ("Fig", "Pear"))))
    assert data.world() == {("Pear", "a"): "Apple a", ("Apple", "p"): "Pear p"}


def test_several_tags_are_applied_in_their_order(data: Data) -> None:
    data.put("Apple", "a")
    third = ClassMigration(tag="v3", transferred=(("Fig", "Pear"),))
    assert data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)), third).applied == ("v1", "v2", "v3")
    assert data.world() == {("Pear", "a"): "Apple a"}


def test_without_a_history_nothing_is_recorded_or_looked_at(data: Data) -> None:
    apply(data.data_dir, None, {"Whatever"}, slots=SLOTS, owner=None)
    check(data.data_dir, None, {"Whatever"})
    assert data.everything() == {}
