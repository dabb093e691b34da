"""A program: brings a database from outside up to date, with the migrations of its class.

It is started by `incoming`, through `limited`, once the file was found whole and of the class. The migrations are the
author's, as trusted here as in a host; what they go through is foreign, and may keep SQLite busy for as long as it
likes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    asked = json.load(sys.stdin)
    # What the author's code prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(file=answers, flush=True)  # its time begins
    try:
        answer = _answer(asked)
    except MemoryError:
        answer = {"memory": True}
    except Exception as error:  # migrations are the author's code
        answer = {"failed": [type(error).__name__, str(error)]}
    json.dump(answer, answers)
    answers.flush()


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    from actors.runtime import sqlite
    from actors.runtime.schema import Schema

    try:
        migrations = pickle.loads(base64.b64decode(asked["migrations"]))  # noqa: S301  made by the host
    except Exception as error:  # modules run when they are loaded, and raise anything
        return {"unknown": f"{type(error).__name__}: {error}"}
    schema = Schema(migrations)
    try:
        with contextlib.closing(sqlite.connect(Path(asked["path"]), asked["size_bytes_max"])) as connection:
            connection.guard(asked["object_key"], schema.ledger)
            schema.bring_up_to_date(asked["object_key"], connection)
    except sqlite.Error as error:
        return {"code": sqlite.code_of(error), "type": type(error).__name__, "message": str(error)}
    return {}


if __name__ == "__main__":
    main()
