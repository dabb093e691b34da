"""Is every history that does not fit refused, with nothing changed?"""

from __future__ import annotations

import json
import pickle

import pytest

from actors.runtime import ClassesRefused
from actors.runtime.class_migration import ClassMigration, Deletion, declared
from tests.unit.class_history.data import BEGIN, FILE, Data, second


def test_a_class_that_is_not_declared_is_refused_by_file_tag_and_class(data: Data) -> None:
    error = data.refusal(BEGIN, second(new=("Fig",)), classes={"Apple", "Pear", "Fig", "Plum"})
    assert (error.file, error.tag, error.class_name) == (FILE, "v2", "Plum")
    assert str(error) == (
        "somewhere/migrations.yaml: tag 'v2': Plum: is in the code and not declared: add a tag with it in new_classes, "
        "or as `to` in renamed_classes"
    )


def test_a_declared_class_that_the_code_lacks_is_refused(data: Data) -> None:
    assert data.refusal(BEGIN, classes={"Apple"}).class_name == "Pear"


def test_a_history_of_nothing_declares_nothing(data: Data) -> None:
    assert data.refusal(classes={"Apple"}).class_name == "Apple"


@pytest.mark.parametrize(
    ("migration", "class_name"),
    [
        (second(new=("Apple",)), "Apple"),
        (second(new=("../Fig",)), "../Fig"),
        (second(renamed=(("Fig", "Plum"),)), "Fig"),
        (second(renamed=(("Apple", "Pear"),)), "Pear"),
        (second(renamed=(("Apple", "a/b"),)), "a/b"),
        (second(renamed=(("Apple", "Apple"),)), "Apple"),
        (second(transferred=(("Apple", "Fig"),)), "Fig"),
        (second(transferred=(("Fig", "Apple"),)), "Fig"),
        (second(transferred=(("Apple", "Apple"),)), "Apple"),
        (second(deleted=(Deletion(name="Fig"),)), "Fig"),
        (second(deleted=(Deletion(name="Apple"), Deletion(name="Apple"))), "Apple"),
    ],
)
def test_a_step_that_does_not_follow_is_refused(migration: ClassMigration, class_name: str) -> None:
    with pytest.raises(ClassesRefused) as caught:
        declared([BEGIN, migration])
    assert (caught.value.tag, caught.value.class_name) == ("v2", class_name)


def test_a_tag_that_comes_twice_is_refused() -> None:
    with pytest.raises(ClassesRefused, match="tag 'v1': the tag comes twice"):
        declared([BEGIN, ClassMigration(tag="v1")])


def test_a_changed_migration_is_refused(data: Data) -> None:
    data.apply(BEGIN)
    error = data.refusal(ClassMigration(tag="v1", new=("Apple", "Pear", "Fig"), file=FILE))
    assert (error.file, error.tag) == (FILE, "v1")
    assert "has changed since" in str(error)


def test_the_order_of_names_and_a_confirmation_that_was_used_are_no_change(data: Data) -> None:
    data.apply(BEGIN, second(deleted=(Deletion(name="Apple", confirmed=True),)))
    data.apply(ClassMigration(tag="v1", new=("Pear", "Apple")), second(deleted=(Deletion(name="Apple"),)))


def test_a_reordered_history_is_refused(data: Data) -> None:
    third = ClassMigration(tag="v3", new=("Plum",))
    data.apply(BEGIN, second(new=("Fig",)), third)
    error = data.refusal(BEGIN, third, second(new=("Fig",)))
    assert (error.tag, "tags keep their order" in str(error)) == ("v3", True)


def test_a_tag_put_in_before_others_is_refused(data: Data) -> None:
    data.apply(BEGIN, second(new=("Fig",)))
    error = data.refusal(BEGIN, ClassMigration(tag="v1.5", new=("Plum",)), second(new=("Fig",)))
    assert (error.tag, "new ones come last" in str(error)) == ("v1.5", True)


def test_a_missing_tag_is_refused_in_the_middle_and_at_the_end(data: Data) -> None:
    data.apply(BEGIN, second(new=("Fig",)))
    assert data.refusal(BEGIN).tag == "v2"
    assert data.refusal(ClassMigration(tag="other", new=("Apple",), file=FILE), classes={"Apple"}).tag == "v1"


def test_a_deletion_with_data_and_no_confirmation_is_refused_with_what_would_go(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", *"abcde")
    error = data.refusal(BEGIN, second(deleted=(Deletion(name="Apple"),)))
    assert (error.file, error.tag, error.class_name) == (FILE, "v2", "Apple")
    assert error.problem == "has 5 objects (acme:a, acme:b, acme:c, …): they are deleted only with `confirm: true`"


def test_a_rename_onto_a_class_that_has_data_is_refused(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    data.put("Fig", "left by somebody")
    error = data.refusal(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert (error.tag, error.class_name) == ("v2", "Fig")


def test_a_transfer_onto_an_object_of_the_same_key_is_refused_and_moves_nothing(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a", "both")
    data.put("Pear", "p", "both")
    error = data.refusal(BEGIN, second(new=("Fig",), transferred=(("Apple", "Pear"),)))
    assert "1 object (acme:both)" in str(error)


def test_a_refusal_in_a_later_tag_keeps_the_earlier_ones_from_being_applied(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    third = ClassMigration(tag="v3", deleted=(Deletion(name="Fig"),))
    assert data.refusal(BEGIN, second(renamed=(("Apple", "Fig"),)), third).tag == "v3"
    assert data.world() == {("Apple", "a"): "Apple a"}


def test_a_file_that_belongs_to_no_object_keeps_its_class_from_moving(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    (data.path("Apple", "a").parent / "notes.txt").write_text("mine")
    assert "notes.txt" in str(data.refusal(BEGIN, second(renamed=(("Apple", "Fig"),))))


def test_a_lost_record_does_not_let_a_deletion_take_what_came_after_it(data: Data) -> None:
    history = (
        BEGIN,
        second(deleted=(Deletion(name="Apple", confirmed=True),)),
        ClassMigration(tag="v3", new=("Apple",)),
    )
    data.apply(*history)
    data.put("Apple", "new")
    data.record.unlink()
    assert "no record says which" in str(data.refusal(*history))


@pytest.mark.parametrize("text", ["", "{}", "[]", "\xff", '{"format": 1}', '{"format": 1, "applied": 3, "moves": []}'])
def test_a_damaged_record_is_refused_by_its_path(data: Data, text: str) -> None:
    data.record.write_text(text, encoding="latin-1")
    error = data.refusal(BEGIN)
    assert error.file == str(data.record)
    assert "is damaged" in str(error)


def test_a_record_of_newer_code_is_refused(data: Data) -> None:
    data.record.write_text(json.dumps({"format": 2}))
    assert "run the newer code" in str(data.refusal(BEGIN))


def test_a_refusal_survives_pickling(data: Data) -> None:
    error = data.refusal(BEGIN, classes={"Apple"})
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
