"""Is what comes from outside let in only if the object could have written it?"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import LocalBackend, Operator
from actors.runtime import (
    InvalidArgument,
    SchemaTooNew,
)
from actors.runtime.inspection import TRANSFERS
from actors.runtime.object_id import ObjectId
from tests.unit.inspection.support import (
    ANOTHERS,
    Growing,
    bytes_of,
    changed,
    exported,
    names,
    notebook,
    write,
)


async def test_what_is_no_whole_object_of_the_class_is_not_imported(
    backend: LocalBackend, operator: Operator, data_dir: Path, tmp_path: Path
) -> None:
    await write(backend, notebook("one"), text="x" * 50_000)
    await backend.namespace(Growing).get("acme", "other").add("thing")
    good = await exported(operator, notebook("one"))
    other = await exported(operator, ObjectId("Growing", "acme", "other"))
    torn = bytearray(good)
    for page in range(4096, len(good), 4096):
        torn[page : page + 100] = b"\xff" * 100
    endless = "WITH RECURSIVE t (x) AS (SELECT 1 UNION ALL SELECT x FROM t) SELECT x AS text, x AS number FROM t"
    own_trigger = "CREATE TRIGGER t AFTER INSERT ON line BEGIN DELETE FROM line; END"
    runs = "CREATE TRIGGER t AFTER INSERT ON _mobula_requests BEGIN DELETE FROM line; END"
    cases = {
        "is no SQLite database": [b"", b"scrap" * 1000, good[16:]],
        "another class": [other],
        "was not made by": [
            changed(tmp_path, b"", "CREATE TABLE t (x)"),
            changed(tmp_path, good, "DROP TABLE _mobula_kv"),
        ],
        "other migrations": [changed(tmp_path, good, ANOTHERS)],
        "trigger": [
            changed(tmp_path, good, runs),
            changed(tmp_path, good, own_trigger),
            changed(tmp_path, good, "DROP TABLE line", f"CREATE VIEW line AS {endless}"),
            changed(tmp_path, good, "DROP TABLE _sqlite_migrations", f"CREATE VIEW _sqlite_migrations AS {endless}"),
            changed(tmp_path, good, "DROP TABLE _mobula_alarm", f"CREATE VIEW _mobula_alarm AS {endless}"),
        ],
        "changed tables of the runtime": [
            changed(tmp_path, good, "ALTER TABLE _mobula_kv ADD COLUMN more"),
            changed(tmp_path, good, "CREATE TABLE _MOBULA_more (x)"),
            changed(tmp_path, good, "DROP TABLE _mobula_alarm"),
        ],
        "alarm at no time": [
            changed(tmp_path, good, f"INSERT INTO _mobula_alarm VALUES (1, {at}, 1, {retries})")
            for at, retries in [("'soon'", 0), ("9e999", 0), ("1e300", 0), (-1, 0), (1, "'many'")]
        ],
        "pages of 4096": [changed(tmp_path, good, "PRAGMA page_size = 8192", "VACUUM")],
        "damaged|refused by SQLite": [bytes(torn), good[: len(good) // 2]],
    }
    for said, all_data in cases.items():
        for data in all_data:
            with pytest.raises(InvalidArgument, match=said):
                await operator.import_(notebook("two"), bytes_of(data))
    newer = "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('notebook', 'from_tomorrow', '')"
    for statement in (newer, "PRAGMA user_version = 99"):
        with pytest.raises(SchemaTooNew):
            await operator.import_(notebook("two"), bytes_of(changed(tmp_path, good, statement)))
    assert names((await operator.list("Notebook")).objects) == ["one"]
    assert list((data_dir / TRANSFERS).iterdir()) == []
    assert not backend.inspector.busy
