"""Do the objects follow their classes, whatever happens on the way, and is every history that does not fit refused?"""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime import ClassesRefused, DurableObject, SlotOwned, idempotent, read
from actors.runtime.backend_local import LocalBackend
from actors.runtime.class_files import RECORD_NAME
from actors.runtime.class_history import ClassChanges, apply, check
from actors.runtime.class_migration import ClassMigration, Deletion, declared
from actors.runtime.host import HostSettings
from actors.runtime.object_id import ObjectId
from actors.runtime.placement import Cluster
from actors.runtime.slot import SlotLock

SLOTS = 8
BEGIN = ClassMigration(tag="v1", new=("Apple", "Pear"))
FILE = "somewhere/migrations.yaml"

World = dict[tuple[str, str], str]


class Crash(BaseException):
    """The process ends here. Not an `Exception`: nothing may handle it."""


class Data:
    """A data directory whose objects are files with a text in them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.objects_dir = data_dir / "objects"
        self.objects_dir.mkdir(parents=True)
        self.steps: list[str] = []

    def path(self, class_name: str, name: str, ending: str = "") -> Path:
        path = ObjectId(class_name, "acme", name).path(self.objects_dir, SLOTS)
        return path.with_name(path.name + ending)

    def put(self, class_name: str, *names: str, ending: str = "", text: str | None = None) -> None:
        for name in names:
            path = self.path(class_name, name, ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text is not None else f"{class_name} {name}{ending}")

    def world(self, ending: str = ".sqlite") -> World:
        """Class and name of each object, with what is in its file; all of them where they belong."""
        found: World = {}
        for path in self.objects_dir.rglob(f"*{ending}"):
            class_name = path.relative_to(self.objects_dir).parts[0]
            object_id = ObjectId.from_key(class_name, path.name.rpartition(".")[0])
            assert path.parent == object_id.path(self.objects_dir, SLOTS).parent, path
            found[class_name, object_id.name] = path.read_text()
        return found

    def apply(
        self,
        *history: ClassMigration,
        classes: set[str] | None = None,
        step: Callable[[str], None] | None = None,
        owner: str | None = None,
    ) -> ClassChanges:
        names = declared(history) if classes is None else classes
        return apply(
            self.data_dir, history, names, slots=SLOTS, owner=owner, wait_s=0.0, step=step or self.steps.append
        )

    def refusal(self, *history: ClassMigration, classes: set[str] | None = None) -> ClassesRefused:
        """What is refused, with a look that nothing is changed by it."""
        before = self.everything()
        with pytest.raises(ClassesRefused) as checked:
            check(self.data_dir, history, declared(history) if classes is None else classes)
        with pytest.raises(ClassesRefused) as caught:
            self.apply(*history, classes=classes)
        assert str(checked.value) == str(caught.value)
        assert self.everything() == before
        return caught.value

    def everything(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.objects_dir.rglob("*") if path.is_file()}

    @property
    def record(self) -> Path:
        return self.objects_dir / RECORD_NAME


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path / "data")


def second(
    *,
    new: tuple[str, ...] = (),
    renamed: tuple[tuple[str, str], ...] = (),
    transferred: tuple[tuple[str, str], ...] = (),
    deleted: tuple[Deletion, ...] = (),
) -> ClassMigration:
    return ClassMigration(tag="v2", new=new, renamed=renamed, transferred=transferred, deleted=deleted, file=FILE)


# What is applied


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


COMPANIONS = ("trouble", "a1700000000000", "a1700000000001", "sqlite-wal")


def put_beside(data: Data, class_name: str, name: str, *endings: str, text: str = "") -> None:
    path = data.path(class_name, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in endings:
        path.with_suffix(f".{ending}").write_text(text or f"{class_name} {name} {ending}")


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


def test_a_crash_at_any_step_takes_no_alarm_and_no_trouble_from_its_object(tmp_path: Path) -> None:
    for number in itertools.count():
        data = Data(tmp_path / f"{number}")
        data.apply(BEGIN)
        data.put("Apple", "a", "b")
        data.put("Pear", "p")
        put_beside(data, "Apple", "a", *COMPANIONS)
        put_beside(data, "Pear", "b", *COMPANIONS)
        put_beside(data, "Apple", "p", *COMPANIONS)
        data.steps.clear()
        history = (BEGIN, second(transferred=(("Apple", "Pear"),)))
        with contextlib.suppress(Crash):
            data.apply(*history, step=crash_at(number))
        data.apply(*history)
        assert set(data.world()) == {("Pear", name) for name in "abp"}
        for ending in COMPANIONS:
            assert data.world(f".{ending}") == {("Pear", "a"): f"Apple a {ending}"}
        if not data.steps:  # the first run had done them all
            break
    assert number >= 20


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


# What is refused


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


# Crashes


def crash_at(number: int) -> Callable[[str], None]:
    """Ends the run at its step of that number, before it is done."""
    count = iter(range(number + 1))

    def step(_: str) -> None:
        if next(count) == number:
            raise Crash

    return step


FULL = second(
    renamed=(("Apple", "Fig"), ("Pear", "Apple")),
    new=("Pear",),
    transferred=(("Apple", "Pear"),),
    deleted=(Deletion(name="Plum", confirmed=True),),
)
FIRST = ClassMigration(tag="v1", new=("Apple", "Pear", "Plum"))
AFTER: World = {("Fig", name): f"Apple {name}" for name in "abc"} | {("Pear", name): f"Pear {name}" for name in "abd"}


def fill(data: Data) -> None:
    data.apply(FIRST)
    data.put("Apple", *"abc")
    data.put("Apple", "b", ending="-wal")
    data.put("Pear", *"abd")
    data.put("Pear", "d", ending="-wal")
    data.put("Pear", "c", ending="-wal")  # without its database
    data.put("Plum", *"xy")
    data.steps.clear()


def test_a_crash_at_any_step_and_another_on_the_way_back_loses_and_mixes_up_nothing(tmp_path: Path) -> None:
    whole = Data(tmp_path / "whole")
    fill(whole)
    whole.apply(FIRST, FULL)
    steps = len(whole.steps)
    assert steps > 20
    for first in range(steps):
        data = Data(tmp_path / f"{first}")
        fill(data)
        with pytest.raises(Crash):
            data.apply(FIRST, FULL, step=crash_at(first))
        if first % 2:
            with contextlib.suppress(Crash):
                data.apply(FIRST, FULL, step=crash_at(first // 3))
        data.apply(FIRST, FULL)
        assert data.world() == AFTER
        assert data.world("-wal") == {("Fig", "b"): "Apple b-wal", ("Pear", "d"): "Pear d-wal"}
        assert data.record.read_bytes() == whole.record.read_bytes()
        assert [path.name for path in data.objects_dir.iterdir() if path.name.startswith(".")] == []


def test_what_a_crash_interrupted_is_finished_by_a_run_without_a_history_too(data: Data) -> None:
    fill(data)
    with pytest.raises(Crash):
        data.apply(FIRST, FULL, step=crash_at(8))
    assert data.world() != AFTER
    apply(data.data_dir, None, (), slots=SLOTS, owner=None)
    assert data.world() == AFTER


def test_a_crash_before_the_record_is_replaced_leaves_everything_as_it_was(data: Data) -> None:
    fill(data)
    before = data.world()
    with pytest.raises(Crash):
        data.apply(FIRST, FULL, step=crash_at(1))
    assert data.world() == before
    data.apply(FIRST)


CLASSES = ("A", "B", "C", "D")
STEP = st.tuples(st.sampled_from(["new", "renamed", "transferred", "deleted"]), *[st.sampled_from(CLASSES)] * 2)


@given(
    objects=st.dictionaries(st.tuples(st.sampled_from("AB"), st.sampled_from("xyz")), st.text("ab", max_size=2)),
    steps=st.lists(st.lists(STEP, max_size=3), max_size=4),
    crashes=st.lists(st.integers(0, 30), max_size=3),
)
def test_any_history_with_any_crashes_ends_where_a_model_does(
    tmp_path_factory: pytest.TempPathFactory,
    objects: World,
    steps: list[list[tuple[str, str, str]]],
    crashes: list[int],
) -> None:
    data = Data(tmp_path_factory.mktemp("any") / "data")
    begin = ClassMigration(tag="v0", new=("A", "B"))
    data.apply(begin)
    for (class_name, name), text in objects.items():
        data.put(class_name, name, text=text)
    history, model = [begin], dict(objects)
    # One step a tag, so that their order is the list's.
    for number, (kind, source, target) in enumerate(step for tag in steps for step in tag):
        tag = f"v{number + 1}"
        if kind == "new":
            migration = ClassMigration(tag=tag, new=(source,))
        elif kind == "renamed":
            migration = ClassMigration(tag=tag, renamed=((source, target),))
        elif kind == "transferred":
            migration = ClassMigration(tag=tag, transferred=((source, target),))
        else:
            migration = ClassMigration(tag=tag, deleted=(Deletion(name=source, confirmed=True),))
        try:
            declared([*history, migration])
        except ClassesRefused:
            continue
        going = {name for class_name, name in model if class_name == source}
        if kind == "transferred" and going & {name for class_name, name in model if class_name == target}:
            continue
        for name in going if kind != "new" else ():
            text = model.pop((source, name))
            if kind != "deleted":
                model[target, name] = text
        history.append(migration)
    for crash in crashes:
        try:
            data.apply(*history, step=crash_at(crash))
        except Crash:
            continue
    data.apply(*history)
    assert data.world() == model
    data.steps.clear()
    data.apply(*history)
    assert data.steps == []


# Who may be there meanwhile


def test_files_do_not_move_while_another_process_may_have_them_open(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    lock = SlotLock(data.data_dir / "slots" / "003.lock", "the other one", wait_s=0.0)
    with pytest.raises(SlotOwned, match="003 is owned by the other one"):
        data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)), owner="me")
    assert data.world() == {("Apple", "a"): "Apple a"}
    data.apply(BEGIN, owner="me")  # nothing to move, nothing to own
    lock.release()
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)), owner="me")
    SlotLock(data.data_dir / "slots" / "003.lock", "the next", wait_s=0.0).release()


def test_files_do_not_move_while_a_dedicated_object_of_the_class_lives(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    lock = SlotLock(data.path("Apple", "a").with_suffix(".lock"), "its own process", wait_s=0.0)
    with pytest.raises(SlotOwned, match="its own process"):
        data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert data.world() == {("Apple", "a"): "Apple a"}
    data.apply(BEGIN)  # the older release can still run
    lock.release()
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert data.world() == {("Fig", "a"): "Apple a"}


def test_only_one_process_applies_a_history(data: Data) -> None:
    lock = SlotLock(data.data_dir / "slots" / "classes.lock", "the other one", wait_s=0.0)
    with pytest.raises(SlotOwned, match="the other one"):
        data.apply(BEGIN)
    lock.release()


# In a backend


def note(name: str) -> type[DurableObject]:
    """A class of that name that keeps a text."""

    class Note(DurableObject):
        @idempotent
        def write(self, text: str) -> None:
            self.storage.sql("CREATE TABLE IF NOT EXISTS note (text TEXT)")
            self.storage.sql("INSERT INTO note VALUES (?)", text)

        @read
        def text(self) -> str:
            ((text,),) = self.storage.sql("SELECT text FROM note")
            return str(text)

    Note.__name__ = name
    return Note


async def test_an_object_of_a_renamed_class_has_what_it_had(tmp_path: Path) -> None:
    settings = HostSettings(slots=SLOTS)
    old, new = note("Apple"), note("Fig")
    begin = ClassMigration(tag="v1", new=("Apple",))
    backend = LocalBackend(tmp_path, [old], settings=settings, history=[begin])
    stub = backend.namespace(old).get("acme", "n1")
    await stub.write("kept")
    backend.close()
    history = [begin, second(renamed=(("Apple", "Fig"),))]
    backend = LocalBackend(tmp_path, [new], settings=settings, history=history)
    assert await backend.namespace(new).get("acme", "n1").text() == "kept"
    backend.close()


def test_a_backend_with_a_refused_history_does_not_start_and_keeps_nothing_locked(tmp_path: Path) -> None:
    settings = HostSettings(slots=SLOTS)
    with pytest.raises(ClassesRefused, match="Fig"):
        LocalBackend(tmp_path, [note("Fig")], settings=settings, history=[ClassMigration(tag="v1", new=("Apple",))])
    LocalBackend(tmp_path, [note("Fig")], settings=settings).close()


def test_clusters_with_different_histories_are_different() -> None:
    def cluster(*history: ClassMigration) -> Cluster:
        return Cluster(data_dir=Path("/nowhere"), classes=(), history=history)

    elsewhere = ClassMigration(tag="v1", new=("Apple", "Pear"), file="elsewhere")
    assert cluster(BEGIN).fingerprint == cluster(elsewhere).fingerprint
    assert cluster(BEGIN).fingerprint != cluster(BEGIN, second(new=("Fig",))).fingerprint
