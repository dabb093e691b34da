"""Which tables has a session's database?

A step that was released stays as it is: databases of that age are brought up to date by those that follow it.
"""

from __future__ import annotations

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("chat_session")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE session (only INTEGER PRIMARY KEY CHECK (only = 1), user_id TEXT, title TEXT,"
        " metadata TEXT NOT NULL, created_at REAL NOT NULL, last_active_at REAL NOT NULL, ttl_s REAL,"
        " messages_max INTEGER NOT NULL, message_count INTEGER NOT NULL DEFAULT 0)"
    )
    # AUTOINCREMENT: the number of a message that left is never given again.
    database.execute(
        "CREATE TABLE message (id INTEGER PRIMARY KEY AUTOINCREMENT, role TEXT NOT NULL, content TEXT NOT NULL,"
        " tokens INTEGER, data TEXT, created_at REAL NOT NULL)"
    )


@migrations()
def create_turns(database: Database) -> None:
    database.execute(
        "CREATE TABLE turn (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL,"
        " message TEXT, replaces INTEGER, model TEXT NOT NULL, request TEXT NOT NULL, key TEXT UNIQUE,"
        " fingerprint BLOB NOT NULL, limits TEXT NOT NULL,"
        " runner TEXT, attempt INTEGER NOT NULL DEFAULT 0, last_event INTEGER NOT NULL DEFAULT 0,"
        " chars INTEGER NOT NULL DEFAULT 0, offers INTEGER NOT NULL DEFAULT 0,"
        " due_at REAL, cancel_requested INTEGER NOT NULL DEFAULT 0, rolled_back INTEGER NOT NULL DEFAULT 0,"
        " message_id INTEGER, answer_id INTEGER, finish_reason TEXT, usage TEXT, error TEXT, created_at REAL NOT NULL,"
        " started_at REAL, ended_at REAL)"
    )
    # Where the next thing to be done for a turn is found; most have nothing left.
    database.execute("CREATE INDEX turn_due_at ON turn (due_at) WHERE due_at IS NOT NULL")
    database.execute("CREATE INDEX turn_open ON turn (number) WHERE ended_at IS NULL")
    database.execute(
        "CREATE TABLE turn_event (turn TEXT NOT NULL, number INTEGER NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL,"
        " PRIMARY KEY (turn, number)) WITHOUT ROWID"
    )
    # Of which turn a message is, and which turn it has given way to: it is hidden while that one runs.
    database.execute("ALTER TABLE message ADD COLUMN turn TEXT")
    database.execute("ALTER TABLE message ADD COLUMN replaced_by TEXT")
    database.execute("CREATE INDEX message_replaced ON message (replaced_by) WHERE replaced_by IS NOT NULL")
    database.execute("ALTER TABLE session ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0")
    database.execute("ALTER TABLE session ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0")
    database.execute(
        "CREATE TABLE untold_usage (turn TEXT PRIMARY KEY, at REAL NOT NULL, model TEXT NOT NULL,"
        " input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, due_at REAL NOT NULL) WITHOUT ROWID"
    )


@migrations()
def create_copying(database: Database) -> None:
    # What is known of a copy that is not whole yet.
    database.execute("ALTER TABLE session ADD COLUMN copying TEXT")


@migrations()
def index_turns_of_messages(database: Database) -> None:
    database.execute("CREATE INDEX message_turn ON message (turn) WHERE turn IS NOT NULL")


@migrations()
def keep_usage_of_attempts(database: Database) -> None:
    # What the attempt that runs has told that it used, and what those before it had.
    database.execute("ALTER TABLE turn ADD COLUMN used TEXT")
    database.execute("ALTER TABLE turn ADD COLUMN used_before TEXT")


@migrations()
def keep_what_leads_to_questions(database: Database) -> None:
    # Messages that come into the history with a turn's question, in front of it.
    database.execute("ALTER TABLE turn ADD COLUMN leading TEXT")


@migrations()
def keep_when_to_enlist(database: Database) -> None:
    # When it makes its own entry in the directory; none where it has one.
    database.execute("ALTER TABLE session ADD COLUMN enlist_at REAL")
