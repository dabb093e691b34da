"""Does `python -m actors` do what it is asked, say what it did, and fail in one line?"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actors import DurableObject, LocalBackend, ObjectQuarantined
from actors.cli.commands import main
from actors.cli.output import CELL_CHARS_MAX
from actors.runtime import operations
from actors.runtime.host_settings import HostSettings
from actors.runtime.object_id import ObjectId
from actors.runtime.quarantine import CRASHES_MAX
from tests.conftest import REPOSITORY
from tests.objects import AlarmClock, Ledger, Notebook

#: What `--app` names.
CLASSES = (Notebook, Ledger, AlarmClock)
NO_CLASSES = ("Notebook",)
APP = f"{__name__}:CLASSES"
SLOTS = 4
DAY_S = 86_400.0
ODD = "a b\x1b[31m/\ud800[bold]"


class Terminal:
    """One data directory, and the commands that are typed about it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def type(self, *argv: str) -> tuple[int, str, str]:
        """The exit code, and what was written to the two outputs."""
        out, err = io.StringIO(), io.StringIO()
        code = main([*argv, "--data-dir", str(self.data_dir), "--app", APP], out, err)
        return code, out.getvalue(), err.getvalue()

    def json(self, *argv: str, code: int = 0) -> list[Any]:
        """The lines of JSON that a command writes."""
        found, out, err = self.type("--json", *argv)
        assert (found, err) == (code, "")
        return [json.loads(line) for line in out.splitlines()]

    def fails(self, *argv: str, code: int = 1) -> str:
        """The one line that a command fails with."""
        found, out, err = self.type(*argv)
        assert (found, out) == (code, "")
        (line,) = err.splitlines()
        assert line.startswith("python -m actors: ")
        return line.removeprefix("python -m actors: ")

    def write(self, *ids: ObjectId) -> None:
        async def add() -> None:
            for object_id in ids:
                durable_class = {"Notebook": Notebook, "Ledger": Ledger}[object_id.class_name]
                await backend.namespace(durable_class).get(object_id.tenant, object_id.name).add("a line")

        backend = LocalBackend(self.data_dir, CLASSES, settings=HostSettings(slots=SLOTS))
        with contextlib.closing(backend):
            asyncio.run(add())

    def quarantine(self, object_id: ObjectId) -> None:
        backend = LocalBackend(self.data_dir, CLASSES, settings=HostSettings(slots=SLOTS))
        with contextlib.closing(backend):
            for _ in range(CRASHES_MAX):
                backend.host.quarantine.crashed(object_id, "add")

    def path(self, object_id: ObjectId) -> Path:
        return object_id.path(self.data_dir / "objects", SLOTS)

    def write_with_old_code(self, *names: str) -> None:
        """Notebooks from before the class had a schema."""

        def note(self: DurableObject) -> None:
            self.storage.kv.put("k", "v")

        old = type("Notebook", (DurableObject,), {"note": note})

        async def note_in_each() -> None:
            for name in names:
                await backend.namespace(old).get("acme", name).note()

        backend = LocalBackend(self.data_dir, [old], settings=HostSettings(slots=SLOTS))
        with contextlib.closing(backend):
            asyncio.run(note_in_each())

    def set_alarm(self, name: str, bell: Path) -> None:
        backend = LocalBackend(self.data_dir, CLASSES, settings=HostSettings(slots=SLOTS))
        with contextlib.closing(backend):
            asyncio.run(backend.namespace(AlarmClock).get("acme", name).ring_at(time.time() + DAY_S, bell))


class Screen(io.StringIO):
    """Where a person looks on."""

    def isatty(self) -> bool:
        return True


def notebook(name: str, tenant: str = "acme") -> ObjectId:
    return ObjectId("Notebook", tenant, name)


@pytest.fixture
def terminal(data_dir: Path) -> Terminal:
    terminal = Terminal(data_dir)
    terminal.write(notebook("one"), notebook("two"), notebook("two", "beta"), ObjectId("Ledger", "acme", "one"))
    return terminal


def test_objects_are_listed_as_lines_of_json(terminal: Terminal) -> None:
    listed = terminal.json("list")
    assert [line["object"] for line in listed] == [
        "Ledger/acme:one",
        "Notebook/acme:one",
        "Notebook/acme:two",
        "Notebook/beta:two",
    ]
    assert (listed[0]["class"], listed[0]["tenant"], listed[0]["name"]) == ("Ledger", "acme", "one")
    assert (listed[0]["resident"], listed[0]["schema_version"]) == (False, "create_tables")
    only = terminal.json("list", "Notebook", "--tenant", "acme", "--prefix", "t")
    assert [line["object"] for line in only] == ["Notebook/acme:two"]


def test_a_list_goes_on_where_it_ended_or_to_the_end(terminal: Terminal) -> None:
    *first, more = terminal.json("list", "--limit", "3")
    rest = terminal.json("list", "--limit", "3", "--after", more["next"])
    assert [*first, *rest] == terminal.json("list", "--limit", "1", "--all")
    assert len(first) == 3


def test_objects_are_shown_as_a_table(terminal: Terminal) -> None:
    code, out, err = terminal.type("list", "Notebook", "--limit", "2")
    assert (code, err) == (0, "")
    head, first, second, more = out.splitlines()
    assert head.split() == ["object", "size", "last", "active", "alarm", "schema", "state"]
    assert first.split()[0] == "Notebook/acme:one"
    assert first.split()[-2:] == ["create_tables", "asleep"]
    assert second.split()[0] == "Notebook/acme:two"
    assert more == "there are more: --after Notebook/acme:two"
    assert terminal.type("list", "Ledger", "--tenant", "nobody")[1] == "no objects\n"


def test_odd_names_do_nothing_to_a_terminal_and_can_be_typed_again(terminal: Terminal) -> None:
    terminal.write(notebook(ODD))
    (listed,) = terminal.json("list", "--prefix", "a ")
    for command in (["list", "--prefix", "a "], ["describe", listed["object"]]):
        code, out, _ = terminal.type(*command)
        assert code == 0
        assert all(one.isprintable() or one == "\n" for one in out)
    assert terminal.json("describe", listed["object"])[0]["object"] == listed["object"]


def test_an_object_is_described(terminal: Terminal) -> None:
    code, out, _ = terminal.type("describe", "Notebook/acme:one")
    facts = dict(line.strip().split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert (facts["object"], facts["resident"], facts["migrations"]) == ("Notebook/acme:one", "no", "1")


def test_a_long_value_is_cut_in_a_table_and_whole_in_json(terminal: Terminal) -> None:
    asked = ("query", "Notebook/acme:one", "SELECT ? AS long, 'y' AS short", "x" * 5000)
    row = terminal.type(*asked)[1].splitlines()[1]
    assert row.split() == [f"{'x' * (CELL_CHARS_MAX - 1)}…", "y"]
    assert terminal.json(*asked)[1] == ["x" * 5000, "y"]


def test_a_query_shows_its_rows(terminal: Terminal) -> None:
    asked = ("query", "Notebook/acme:one", "SELECT text, x'00ff' AS raw, 9e999 FROM line WHERE text = ?", "a line")
    columns, *rows = terminal.json(*asked)
    assert columns == {"columns": ["text", "raw", "9e999"]}
    assert rows == [["a line", {"base64": "AP8="}, {"float": "inf"}]]
    head, row = terminal.type(*asked)[1].splitlines()
    assert head.split() == ["text", "raw", "9e999"]
    assert row.split() == ["a", "line", "x'00ff'", "inf"]
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    assert terminal.json("query", "Notebook/acme:one", numbers, "--rows", "2")[1:] == [[1], [2], {"truncated": True}]


def test_what_rows_hold_does_nothing_to_a_terminal(terminal: Terminal) -> None:
    _, out, _ = terminal.type(
        "query", "Notebook/acme:one", "SELECT char(27) || '[31m' || char(10) || '[bold]x' AS \"a\x1b\""
    )
    assert all(one.isprintable() or one == "\n" for one in out)
    assert "\\x1b[31m\\n[bold]x" in out


def test_an_export_is_imported_again(terminal: Terminal, tmp_path: Path) -> None:
    file = str(tmp_path / "one.sqlite")
    (said,) = terminal.json("export", "Notebook/acme:one", file)
    assert said == {"object": "Notebook/acme:one", "done": "exported", "bytes": Path(file).stat().st_size}
    assert "File exists" in terminal.fails("export", "Notebook/acme:two", file)
    (imported,) = terminal.json("import", "Notebook/new:one", file)
    assert imported["object"] == "Notebook/new:one"
    assert "already" in terminal.fails("import", "Notebook/new:one", file)
    terminal.json("import", "Notebook/new:one", file, "--replace")
    assert terminal.json("query", "Notebook/new:one", "SELECT text FROM line")[1:] == [["a line"]]


def test_a_failed_export_leaves_no_file(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "none.sqlite"
    assert "does not exist" in terminal.fails("export", "Notebook/acme:none", str(file))
    assert not file.exists()


def test_an_object_is_deleted_only_with_yes(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as usage:
        terminal.type("delete", "Notebook/acme:one")
    assert usage.value.code == 2
    assert "--yes" in capsys.readouterr().err
    assert terminal.type("delete", "Notebook/acme:one", "--yes")[:2] == (0, "Notebook/acme:one: deleted\n")
    assert not terminal.path(notebook("one")).exists()


def test_objects_in_quarantine_are_listed_and_released(terminal: Terminal) -> None:
    terminal.quarantine(notebook("two"))
    (found,) = terminal.json("quarantine")
    assert (found["object"], found["quarantined"]) == ("Notebook/acme:two", True)
    assert terminal.type("quarantine")[1].splitlines()[1].split()[-1] == "quarantined"
    assert "its add ended the host's process" in terminal.type("describe", "Notebook/acme:two")[1]
    assert terminal.json("release", "Notebook/acme:two") == [{"object": "Notebook/acme:two", "done": "released"}]
    assert "not in quarantine" in terminal.fails("release", "Notebook/acme:two")
    assert terminal.json("quarantine") == []


def test_an_object_answers_again_when_it_was_released(terminal: Terminal) -> None:
    terminal.quarantine(notebook("two"))
    with pytest.raises(ObjectQuarantined):
        terminal.write(notebook("two"))
    terminal.json("release", "Notebook/acme:two")
    terminal.write(notebook("two"))
    assert terminal.json("query", "Notebook/acme:two", "SELECT text FROM line")[1:] == [["a line"]] * 2


def test_who_looks_with_other_code_leaves_the_quarantine_as_it_is(terminal: Terminal) -> None:
    terminal.quarantine(notebook("two"))
    record = terminal.path(notebook("two")).with_suffix(".trouble")
    record.write_text(json.dumps({**json.loads(record.read_text()), "code": "another's"}))
    before = record.read_bytes()
    (found,) = terminal.json("quarantine")
    assert (found["object"], found["quarantined"]) == ("Notebook/acme:two", True)
    assert "quarantined" in terminal.fails("alarm", "Notebook/acme:two")
    assert record.read_bytes() == before
    assert terminal.json("release", "Notebook/acme:two") == [{"object": "Notebook/acme:two", "done": "released"}]
    assert not record.exists()


def test_an_object_is_evicted_and_has_no_alarm(terminal: Terminal) -> None:
    assert terminal.json("evict", "Notebook/acme:one") == [{"object": "Notebook/acme:one", "done": "evicted"}]
    assert terminal.type("evict", "Notebook/acme:one", "--force")[:2] == (0, "Notebook/acme:one: evicted\n")
    assert "has no alarm" in terminal.fails("alarm", "Notebook/acme:one")


def test_an_alarm_is_fired_before_its_time_and_is_over_then(terminal: Terminal, tmp_path: Path) -> None:
    bells = [tmp_path / "one", tmp_path / "two"]
    for bell in bells:
        terminal.set_alarm(bell.name, bell)
    assert terminal.json("alarm", "AlarmClock/acme:one") == [{"object": "AlarmClock/acme:one", "done": "alarm fired"}]
    assert [bell.exists() for bell in bells] == [True, False]
    assert terminal.json("describe", "AlarmClock/acme:one")[0]["alarm_at"] is None
    assert "has no alarm" in terminal.fails("alarm", "AlarmClock/acme:one")
    assert terminal.type("alarm", "AlarmClock/acme:two")[:2] == (0, "AlarmClock/acme:two: alarm fired\n")
    assert bells[1].exists()


def test_a_sweep_tells_of_each_page_what_it_has_seen_and_migrated(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_MIGRATED_AT_ONCE", 2)
    terminal.write_with_old_code("a", "b", "c", "z")
    told = terminal.json("migrate", "Notebook")
    steps = [(step["seen"], step["migrated"]) for step in told]
    assert steps == [(0, 0), (2, 2), (4, 3), (6, 4), (7, 4)]
    assert {step["total"] for step in told} == {7}
    assert terminal.json("describe", "Notebook/acme:a")[0]["schema_version"] == "create_tables"
    assert terminal.json("migrate", "Notebook")[-1]["migrated"] == 0


def test_the_bar_of_a_sweep_goes_from_nothing_to_its_end(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    _, piped, _ = terminal.type("migrate", "Notebook")
    bar, _ = piped.splitlines()
    assert (bar.split()[0], bar.split()[-1]) == ("migrating", "3/3")
    screen = Screen()
    assert main(["migrate", "Notebook", "--data-dir", str(terminal.data_dir), "--app", APP], screen, io.StringIO()) == 0
    shown = screen.getvalue()
    assert 0 < shown.index("migrating") < shown.index("0/3") < shown.index("3/3") < shown.index("3 objects, 0 migrated")


def test_a_sweep_of_migrations_tells_how_far_it_is(terminal: Terminal) -> None:
    told = terminal.json("migrate")
    assert told[-1] == {"total": 4, "seen": 4, "migrated": 0, "failures": 0, "failed": []}
    code, out, _ = terminal.type("migrate", "Notebook")
    assert code == 0
    assert out.splitlines()[-1] == "3 objects, 0 migrated, 0 failed"


def test_a_sweep_that_failed_for_an_object_says_for_which_and_why(terminal: Terminal) -> None:
    terminal.path(notebook("two")).write_bytes(b"scrap")
    told = terminal.json("migrate", "Notebook", code=1)
    assert [failed["object"] for failed in told[-1]["failed"]] == ["Notebook/acme:two"]
    code, out, _ = terminal.type("migrate")
    assert code == 1
    assert any(line.startswith("Notebook/acme:two: ") for line in out.splitlines())
    assert terminal.type("list", "Notebook")[1].splitlines()[2].split()[-1] == "unreadable"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["describe", "Notebook/acme:none"], "Notebook/acme:none does not exist"),
        (["describe", "Nobody/acme:one"], "does not exist"),
        (["import", "Notebook/acme:new", "/nowhere/file"], "No such file"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(terminal: Terminal, argv: list[str], said: str) -> None:
    assert said in terminal.fails(*argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["describe", "one"], "write CLASS/TENANT:NAME"),
        (["describe", "Notebook/one"], "must be tenant:name"),
        (["list", "Nobody"], "no such durable class"),
        (["list", "--limit", "0"], "limit"),
        (["query", "Notebook/acme:one", "SELEC"], "syntax error"),
        (["query", "Notebook/acme:one", "DELETE FROM line"], "may not do more than SELECT"),
    ],
)
def test_what_was_asked_wrong_is_said_in_one_line_too(terminal: Terminal, argv: list[str], said: str) -> None:
    assert said in terminal.fails(*argv, code=2)


@pytest.mark.parametrize("argv", [["list", "--app", "nowhere:CLASSES"], ["list", "--app", "json"]])
def test_classes_that_are_not_there_are_said_in_one_line(terminal: Terminal, argv: list[str]) -> None:
    for app in ("nowhere:CLASSES", "json", "json:nothing", "json:loads", f"{__name__}:NO_CLASSES"):
        err = io.StringIO()
        assert main(["list", "--data-dir", str(terminal.data_dir), "--app", app], io.StringIO(), err) == 1
        assert err.getvalue().startswith(f"python -m actors: --app {app}: ")
        assert err.getvalue().count("\n") == 1


def test_a_directory_that_is_in_use_or_none_is_left_alone(terminal: Terminal, tmp_path: Path) -> None:
    backend = LocalBackend(terminal.data_dir, CLASSES, settings=HostSettings(slots=SLOTS))
    with contextlib.closing(backend):
        said = terminal.fails("list")
    assert "is owned by" in said
    assert "leave out --data-dir" in said
    nothing = Terminal(tmp_path / "nothing")
    assert "is no data directory" in nothing.fails("list")
    assert not nothing.data_dir.exists()


def test_app_is_for_a_data_directory_only() -> None:
    err = io.StringIO()
    assert main(["list", "--app", APP], io.StringIO(), err) == 2
    assert "--app goes with --data-dir" in err.getvalue()


def test_the_module_runs_and_has_the_classes_of_the_service_by_default(data_dir: Path) -> None:
    LocalBackend(data_dir, []).close()
    command = [sys.executable, "-m", "actors", "list", "--json", "--data-dir", str(data_dir)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
