"""Does the history of classes load as written, and is everything else refused by file, field and value?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import actors
from actors.runtime.class_migration import ClassMigration, Deletion, declared
from actors.runtime.object import DurableObject
from configs.class_migrations import PACKAGED_MIGRATIONS_FILE, MigrationConfig, load_class_history
from configs.errors import ConfigError
from configs.loading import load_service
from configs.service import ServiceConfig
from tests.conftest import REPOSITORY


def durable_classes() -> set[str]:
    exported = [vars(actors)[name] for name in actors.__all__]
    return {
        one.__name__
        for one in exported
        if isinstance(one, type) and issubclass(one, DurableObject) and one is not DurableObject
    }


def load(folder: Path, text: str) -> tuple[ClassMigration, ...]:
    file = folder / "migrations.yaml"
    file.write_text(text)
    return load_class_history(ServiceConfig(migrations=file))


def refusal(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert caught.value.file == str(folder / "migrations.yaml")
    return caught.value


def test_the_packaged_history_declares_every_class_of_the_package() -> None:
    assert declared(load_class_history(load_service({}))) == durable_classes()


def test_the_packaged_file_explains_every_field() -> None:
    text = PACKAGED_MIGRATIONS_FILE.read_text()
    (first, *_) = yaml.safe_load(text)["migrations"]
    assert set(first) == set(MigrationConfig.model_fields)
    lines = text.splitlines()
    for name in MigrationConfig.model_fields:
        number = next(number for number, line in enumerate(lines) if line.strip().lstrip("- ").startswith(f"{name}:"))
        assert lines[number - 1].strip().startswith("#"), name


def test_the_package_brings_its_history_along() -> None:
    assert '\nconfigs = ["*.yaml"' in (REPOSITORY / "pyproject.toml").read_text()


def test_every_kind_of_step_is_read_and_names_its_file(tmp_path: Path) -> None:
    text = """
        migrations:
          - {tag: v1, new_classes: [A, B, C, D]}
          - tag: v2
            renamed_classes: [{from: A, to: Z}]
            transferred_classes: [{from: B, to: C}]
            deleted_classes: [{name: D, confirm: true}]
          - {tag: v3, deleted_classes: [{name: C}]}
    """
    history = load(tmp_path, text)
    assert history == (
        ClassMigration(tag="v1", new=("A", "B", "C", "D")),
        ClassMigration(
            tag="v2",
            renamed=(("A", "Z"),),
            transferred=(("B", "C"),),
            deleted=(Deletion(name="D", confirmed=True),),
        ),
        ClassMigration(tag="v3", deleted=(Deletion(name="C", confirmed=False),)),
    )
    assert {migration.file for migration in history} == {str(tmp_path / "migrations.yaml")}


def test_the_file_counts_from_the_folder_of_the_service_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "tenants").mkdir()
    (tmp_path / "conf" / "service.yaml").write_text("migrations: own.yaml")
    service = load_service({"MOBULA_CONFIG": "conf/service.yaml"}, working_dir=tmp_path)
    assert service.migrations == (tmp_path / "conf" / "own.yaml").resolve()


def test_a_service_that_names_no_file_has_the_packaged_history(tmp_path: Path) -> None:
    (tmp_path / "tenants").mkdir()
    (tmp_path / "service.yaml").write_text("{}")
    service = load_service({"MOBULA_CONFIG": "service.yaml"}, working_dir=tmp_path)
    assert service.migrations is None
    assert load_class_history(service)[0].file == str(PACKAGED_MIGRATIONS_FILE)


def test_a_file_that_is_not_there_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: .*can't be read"):
        load_class_history(ServiceConfig(migrations=tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ("{}", "migrations", "is required"),
        ("migrations: []", "migrations", "must have at least 1 item"),
        ("migrations: [{new_classes: [A]}]", "migrations[0].tag", "is required"),
        ("migrations: [{tag: 1}]", "migrations[0].tag", "must be a valid string"),
        ("migrations: [{tag: 'a b'}]", "migrations[0].tag", "must match pattern"),
        (
            "migrations: [{tag: v1, new_clases: [A]}]",
            "migrations[0].new_clases",
            "is an unknown field; known here: del",
        ),
        ("migrations: [{tag: v1, new_classes: [../A]}]", "migrations[0].new_classes[0]", "must match pattern"),
        ("migrations: [{tag: v1, new_classes: ['A\n']}]", "migrations[0].new_classes[0]", "must match pattern"),
        (
            "migrations: [{tag: v1, renamed_classes: [{from: A, too: B}]}]",
            "migrations[0].renamed_classes[0].too",
            "is an unknown field; known here: from, to",
        ),
        (
            "migrations: [{tag: v1, renamed_classes: [{from: A}]}]",
            "migrations[0].renamed_classes[0].to",
            "is required",
        ),
        (
            "migrations: [{tag: v1, deleted_classes: [{name: A, confirm: 'yes'}]}]",
            "migrations[0].deleted_classes[0].confirm",
            "must be a valid boolean",
        ),
        ("migrations: [{tag: v1}, {tag: v2}, {tag: v1}]", "migrations[2]", "the tag comes twice"),
        (
            "migrations: [{tag: v1, new_classes: [A]}, {tag: v2, renamed_classes: [{from: B, to: C}]}]",
            "migrations[1]",
            "can't be changed: no such class is declared up to here",
        ),
    ],
)
def test_what_is_no_history_is_refused_by_file_and_field(tmp_path: Path, text: str, field: str, problem: str) -> None:
    error = refusal(tmp_path, text)
    assert error.field == field
    assert error.problem.startswith(problem)


def test_a_step_that_does_not_follow_is_refused_with_the_class(tmp_path: Path) -> None:
    text = "migrations: [{tag: v1, new_classes: [A]}, {tag: v2, deleted_classes: [{name: B}]}]"
    assert "B" in refusal(tmp_path, text).value


def test_to_load_the_service_does_not_import_ray() -> None:
    # Ray reads its environment when it is imported, and the foreground run sets that after loading.
    code = "import sys, deployments.__main__; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0
