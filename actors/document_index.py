"""What documents does a tenant have, and which passages hold these words?

Documents, their chunks, and a full-text index of them, changed together in one transaction. This is the truth about a
tenant's documents: vectors live elsewhere, name chunks by their ids, and count only while the chunk is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from typing_extensions import TypedDict

from actors.runtime import DurableObject, InvalidArgument, exactly_once, read

PAGE_MAX = 100
MATCHES_MAX = 200
#: Words of a query that are looked for; a longer one is a text, and its first words say what it is about.
QUERY_WORDS_MAX = 32
#: Words of a query that a chunk needs at most, however long the query is.
WORDS_NEEDED_MAX = 3
#: A word that so large a part of all chunks holds tells none apart, once there are enough of them to say so.
COMMON_SHARE = 0.25
COMMON_CHUNKS_MIN = 12
WHERE_FIELDS_MAX = 32
# A letter may be written as a plain one and combining accents; the index takes both for the same.
_WORD = re.compile(r"[\w\u0300-\u036f]+")

migrations = Migrations("document_index")

Scalar = str | int | float | bool


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE document (id TEXT PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL,"
        " content_hash TEXT NOT NULL, chunk_count INTEGER NOT NULL, chars INTEGER NOT NULL, created_at REAL NOT NULL,"
        " updated_at REAL NOT NULL)"
    )
    database.execute(
        "CREATE TABLE chunk (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,"
        " document_id TEXT NOT NULL REFERENCES document (id) ON DELETE CASCADE, heading TEXT NOT NULL,"
        " text TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL)"
    )
    database.execute("CREATE INDEX chunk_document_id ON chunk (document_id)")
    database.execute(
        "CREATE VIRTUAL TABLE chunk_words USING fts5 (heading, text, content='chunk', content_rowid='number',"
        " tokenize='porter unicode61 remove_diacritics 2')"
    )
    database.execute(
        "CREATE TRIGGER chunk_added AFTER INSERT ON chunk BEGIN"
        " INSERT INTO chunk_words (rowid, heading, text) VALUES (new.number, new.heading, new.text); END"
    )
    database.execute(
        "CREATE TRIGGER chunk_removed AFTER DELETE ON chunk BEGIN INSERT INTO chunk_words"
        " (chunk_words, rowid, heading, text) VALUES ('delete', old.number, old.heading, old.text); END"
    )
    database.execute("CREATE TABLE revision (only INTEGER PRIMARY KEY CHECK (only = 1), number INTEGER NOT NULL)")
    database.execute("INSERT INTO revision VALUES (1, 0)")


class NewChunk(TypedDict):
    """A passage, `text == document text[start:end]` in characters, under a path of headings."""

    id: str
    heading: str
    text: str
    start: int
    end: int


class Passage(NewChunk):
    """A chunk with what is known of its document."""

    document_id: str
    title: str
    metadata: dict[str, Scalar]


class DocumentEntry(TypedDict):
    """A document without its text. Times are seconds since 1970."""

    id: str
    title: str
    metadata: dict[str, Scalar]
    content_hash: str
    chunk_count: int
    chars: int
    created_at: float
    updated_at: float


class Document(DocumentEntry):
    text: str


class DocumentPage(TypedDict):
    documents: list[DocumentEntry]
    has_more: bool


_ENTRY = "id, title, metadata, content_hash, chunk_count, chars, created_at, updated_at"


class DocumentIndex(DurableObject):
    migrations = migrations

    @read
    def content_hashes(self, document_ids: Sequence[str]) -> dict[str, str]:
        """The content hashes of those of the documents that are here."""
        rows = self.storage.sql(
            "SELECT id, content_hash FROM document WHERE id IN (SELECT value FROM json_each(?))",
            json.dumps(list(document_ids)),
        )
        return {str(document_id): str(content_hash) for document_id, content_hash in rows}

    @exactly_once
    def put(
        self,
        document_id: str,
        *,
        title: str,
        text: str,
        metadata: Mapping[str, Scalar],
        content_hash: str,
        chunks: Sequence[NewChunk],
    ) -> list[str]:
        """Stores a document in place of what was there.

        Returns:
            The ids of the chunks that it replaced and that are no longer here. Their vectors can go.

        Raises:
            InvalidArgument: the metadata holds a number that JSON can't.
        """
        try:
            encoded_metadata = json.dumps(dict(metadata), allow_nan=False)
        except ValueError:
            raise InvalidArgument("metadata", dict(metadata), "must be JSON, without NaN and infinity") from None
        now = self.clock.now()
        replaced = self._remove_chunks(document_id)
        self.storage.sql(
            "INSERT INTO document VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " title = excluded.title, text = excluded.text, metadata = excluded.metadata,"
            " content_hash = excluded.content_hash, chunk_count = excluded.chunk_count, chars = excluded.chars,"
            " updated_at = excluded.updated_at",
            document_id,
            title,
            text,
            encoded_metadata,
            content_hash,
            len(chunks),
            len(text),
            now,
            now,
        )
        self.storage.sql_many(
            "INSERT INTO chunk (id, document_id, heading, text, start, end) VALUES (?, ?, ?, ?, ?, ?)",
            [(c["id"], document_id, c["heading"], c["text"], c["start"], c["end"]) for c in chunks],
        )
        self._bump_revision()
        kept = {c["id"] for c in chunks}
        return [chunk_id for chunk_id in replaced if chunk_id not in kept]

    @exactly_once
    def delete(self, document_id: str) -> list[str] | None:
        """Removes a document. Returns the ids of its chunks, or None if it was not there."""
        removed = self._remove_chunks(document_id)
        if not self.storage.sql("DELETE FROM document WHERE id = ? RETURNING 1", document_id):
            return None
        self._bump_revision()
        return removed

    @read
    def get(self, document_id: str) -> Document | None:
        rows = self.storage.sql(f"SELECT {_ENTRY}, text FROM document WHERE id = ?", document_id)  # noqa: S608  constant
        return {**_entry(rows[0][:-1]), "text": rows[0][-1]} if rows else None

    @read
    def page(self, *, limit: int = 20, after: str | None = None) -> DocumentPage:
        """Documents in the order of their ids, from behind the id `after`."""
        limit = max(1, min(limit, PAGE_MAX))
        rows = self.storage.sql(
            f"SELECT {_ENTRY} FROM document WHERE ?1 IS NULL OR id > ?1 ORDER BY id LIMIT ?2",  # noqa: S608  constant
            after,
            limit + 1,
        )
        return {"documents": [_entry(row) for row in rows[:limit]], "has_more": len(rows) > limit}

    @read
    def match(self, query: str, *, limit: int = 50, where: Mapping[str, Scalar] | None = None) -> list[str]:
        """The ids of the chunks that hold enough words of `query`, best first by BM25.

        Enough is half of those that tell chunks apart, `WORDS_NEEDED_MAX` at most. One word in common is no answer to a
        question, and words that are everywhere, such as "the" in English, are in every question.

        Args:
            where: what the document's metadata must hold.

        Raises:
            InvalidArgument: `where` names too many fields.
        """
        if where and len(where) > WHERE_FIELDS_MAX:
            raise InvalidArgument("where", f"{len(where)} fields", f"must name at most {WHERE_FIELDS_MAX}")
        words, needed = self._telling_words(query)
        if not words:
            return []
        one_word = "SELECT rowid AS number FROM chunk_words WHERE chunk_words MATCH ?"
        condition, binds = _condition(where)
        rows = self.storage.sql(
            f"WITH held AS ({' UNION ALL '.join([one_word] * len(words))}),"  # noqa: S608  no values
            " enough AS (SELECT number FROM held GROUP BY number HAVING count(*) >= ?)"
            " SELECT chunk.id FROM chunk_words JOIN chunk ON chunk.number = chunk_words.rowid"
            " JOIN document ON document.id = chunk.document_id WHERE chunk_words MATCH ?"
            f" AND chunk_words.rowid IN enough{condition} ORDER BY bm25(chunk_words) LIMIT ?",
            *words,
            needed,
            " OR ".join(words),
            *binds,
            max(1, min(limit, MATCHES_MAX)),
        )
        return [chunk_id for (chunk_id,) in rows]

    @read
    def passages(self, chunk_ids: Sequence[str]) -> list[Passage]:
        """Those of the chunks that are here, in the order asked for."""
        rows = self.storage.sql(
            "SELECT chunk.id, document_id, title, metadata, heading, chunk.text, start, end FROM json_each(?) AS asked"
            " JOIN chunk ON chunk.id = asked.value JOIN document ON document.id = chunk.document_id ORDER BY asked.key",
            json.dumps(list(chunk_ids)),
        )
        return [
            {
                "id": chunk_id,
                "document_id": document_id,
                "title": title,
                "metadata": json.loads(metadata),
                "heading": heading,
                "text": text,
                "start": start,
                "end": end,
            }
            for chunk_id, document_id, title, metadata, heading, text, start, end in rows
        ]

    @read
    def revision(self) -> int:
        """Grows with every change, so that what was found before can be told from what would be found now."""
        ((number,),) = self.storage.sql("SELECT number FROM revision")
        return int(number)

    def _telling_words(self, query: str) -> tuple[list[str], int]:
        """The words of a query that are here and not everywhere, and how many of them a chunk needs.

        Each is quoted, so that none is an operator of the query language.
        """
        asked = dict.fromkeys(f'"{word}"' for word in _WORD.findall(query)[:QUERY_WORDS_MAX])
        ((chunks,),) = self.storage.sql("SELECT count(*) FROM chunk")
        holding = {
            word: self.storage.sql("SELECT count(*) FROM chunk_words WHERE chunk_words MATCH ?", word)[0][0]
            for word in asked
        }
        common_from = chunks * COMMON_SHARE if chunks >= COMMON_CHUNKS_MIN else chunks + 1
        telling = [word for word, held_by in holding.items() if held_by < common_from]
        present = [word for word in telling if holding[word]]
        if not telling:  # nothing but common words: then those are meant
            telling = present = [word for word, held_by in holding.items() if held_by]
        return present, min(max(1, len(telling) // 2), WORDS_NEEDED_MAX)

    def _remove_chunks(self, document_id: str) -> list[str]:
        rows = self.storage.sql("DELETE FROM chunk WHERE document_id = ? RETURNING id", document_id)
        return [chunk_id for (chunk_id,) in rows]

    def _bump_revision(self) -> None:
        self.storage.sql("UPDATE revision SET number = number + 1")


def _condition(where: Mapping[str, Scalar] | None) -> tuple[str, list[Any]]:
    """What document metadata must hold, as SQL without a value in it, and the values."""
    conditions = []
    binds: list[Any] = []
    wanted: Scalar
    for key, value in (where or {}).items():
        # By type as well: to SQLite true is 1, and to JSON it is not.
        if isinstance(value, bool):
            test, wanted = "field.type = ?", "true" if value else "false"
        elif isinstance(value, str):
            test, wanted = "field.type = 'text' AND field.value = ?", value
        else:
            test, wanted = "field.type IN ('integer', 'real') AND field.value = ?", value
        conditions.append(
            " AND EXISTS (SELECT 1 FROM json_each(document.metadata) AS field"  # noqa: S608  the test is one of three
            f" WHERE field.key = ? AND {test})"
        )
        binds += [key, wanted]
    return "".join(conditions), binds


def _entry(row: tuple[Any, ...]) -> DocumentEntry:
    document_id, title, metadata, content_hash, chunk_count, chars, created_at, updated_at = row
    return {
        "id": document_id,
        "title": title,
        "metadata": json.loads(metadata),
        "content_hash": content_hash,
        "chunk_count": chunk_count,
        "chars": chars,
        "created_at": created_at,
        "updated_at": updated_at,
    }
