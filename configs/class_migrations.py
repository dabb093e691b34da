"""Which history do the durable classes have? `configs/migrations.yaml` explains the file.

`load_class_history` gives it as the runtime wants it, or one `ConfigError`. Whether it fits the code and the data is
seen where the data is, by `actors.runtime.class_history`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from actors.runtime.class_migration import ClassMigration, Deletion, declared
from actors.runtime.errors import ClassesRefused
from actors.runtime.object_id import CLASS_NAME
from configs.base import Config
from configs.errors import ConfigError
from configs.service import ServiceConfig
from configs.yaml_file import read

PACKAGED_MIGRATIONS_FILE = Path(__file__).with_name("migrations.yaml")
#: Far above what a history that people write by hand comes to.
ITEMS_MAX = 1000

ClassName = Annotated[str, Field(pattern=rf"^{CLASS_NAME.pattern}$")]


class ClassPair(Config):
    """One class and what becomes of it. `from` is a word of Python's own."""

    source: ClassName = Field(alias="from")
    target: ClassName = Field(alias="to")


class DeletedClass(Config):
    name: ClassName
    confirm: bool = False


class MigrationConfig(Config):
    tag: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    new_classes: Annotated[tuple[ClassName, ...], Field(strict=False, max_length=ITEMS_MAX)] = ()
    renamed_classes: Annotated[tuple[ClassPair, ...], Field(strict=False, max_length=ITEMS_MAX)] = ()
    transferred_classes: Annotated[tuple[ClassPair, ...], Field(strict=False, max_length=ITEMS_MAX)] = ()
    deleted_classes: Annotated[tuple[DeletedClass, ...], Field(strict=False, max_length=ITEMS_MAX)] = ()

    def as_class_migration(self, file: Path) -> ClassMigration:
        return ClassMigration(
            tag=self.tag,
            new=self.new_classes,
            renamed=tuple((pair.source, pair.target) for pair in self.renamed_classes),
            transferred=tuple((pair.source, pair.target) for pair in self.transferred_classes),
            deleted=tuple(Deletion(name=deleted.name, confirmed=deleted.confirm) for deleted in self.deleted_classes),
            file=str(file),
        )


class MigrationsConfig(Config):
    migrations: Annotated[tuple[MigrationConfig, ...], Field(strict=False, min_length=1, max_length=ITEMS_MAX)]


def load_class_history(service: ServiceConfig) -> tuple[ClassMigration, ...]:
    """The history that the service's configuration names.

    Raises:
        ConfigError: the file is not as it must be, or its steps don't follow from each other.
    """
    file = service.migrations or PACKAGED_MIGRATIONS_FILE
    config = read(file, MigrationsConfig)
    history = tuple(migration.as_class_migration(file) for migration in config.migrations)
    try:
        declared(history)
    except ClassesRefused as refused:
        # The last of its tag: one that comes twice is wrong where it comes again.
        index = max(number for number, migration in enumerate(history) if migration.tag == refused.tag)
        raise ConfigError(str(file), f"migrations[{index}]", refused.class_name, refused.problem) from None
    return history
