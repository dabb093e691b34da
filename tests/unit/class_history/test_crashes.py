"""Does a history that was interrupted anywhere end as if nothing had happened?"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime import ClassesRefused
from actors.runtime.class_history import apply
from actors.runtime.class_migration import ClassMigration, Deletion, declared
from tests.unit.class_history.data import BEGIN, COMPANIONS, SLOTS, Crash, Data, World, crash_at, put_beside, second


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
