"""Which stored chunks are nearest to a vector?

Promise: `VectorStore` keeps the vectors of all tenants in one Chroma directory, each tenant in a Chroma tenant and
database of its own, so that no query can see another's. What a call has returned from is on disk. Exactly one
`VectorStore` on the machine owns a directory, by a lock of the kernel's that is gone the moment its process is:
Chroma's files are not made for two.

It keeps no text, and gives no distances away. All of it can be made again from the documents it stands for. Chroma
keeps the index of every tenant asked about since the start in memory (about 2 kB a chunk).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.config import Settings
from chromadb.errors import NotFoundError

from deployments.errors import VectorStoreOwned

Scalar: TypeAlias = str | int | float | bool

TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{2,62}")
DATABASE = "mobula"
COLLECTION = "chunks"
ITEMS_PER_BATCH = 250  # what Chroma's guide advises; its own limit is 5,461
ITEMS_MAX = 5_000
TOP_K_MAX = 200
# A killed owner's lock is freed when the kernel has torn its process down, which takes a moment for a large one.
LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.05
OWNED_RETRY_AFTER_S = 5.0
_DOCUMENT = "document_id"
_USER = "m."  # before every key of the caller's, so that none can stand for one of ours


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorItem:
    """A chunk's vector. `chunk_id` is unique in its tenant; storing it again replaces all of it."""

    chunk_id: str
    document_id: str
    embedding: npt.NDArray[np.float32]
    metadata: Mapping[str, Scalar]


class VectorStore:
    """The owner of one Chroma directory, from construction until `close`. Safe to call from many threads.

    Args:
        path: The directory; made if it is not there.
        monotonic: Seconds that never go back; for waiting for the lock.
        sleep: Waits some seconds.

    Raises:
        VectorStoreOwned: Another process, or another `VectorStore` of this one, owns the directory.
    """

    def __init__(
        self,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock_fd = _own(path / "owner.lock", monotonic, sleep)
        try:
            self._settings = Settings(
                anonymized_telemetry=False, allow_reset=False, is_persistent=True, persist_directory=str(path)
            )
            self._root = chromadb.Client(self._settings)
            self._admin = chromadb.AdminClient(self._settings)
            self._remove_orphans()
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._writing = threading.Lock()  # Chroma's database takes one writer at a time anyway

    def upsert(self, tenant: str, items: Sequence[VectorItem]) -> None:
        """Stores the items, in batches: after an error some of them may be stored, and calling again is right."""
        _check_tenant(tenant)
        if len(items) > ITEMS_MAX:
            raise ValueError(f"at most {ITEMS_MAX} items at once, not {len(items)}")
        unique = list({item.chunk_id: item for item in items}.values())  # Chroma refuses an id twice; the last counts
        for start in range(0, len(unique), ITEMS_PER_BATCH):
            batch = unique[start : start + ITEMS_PER_BATCH]
            with self._writing, self._chunks_made(tenant) as chunks:
                ids = [item.chunk_id for item in batch]
                # Chroma adds the new keys to the old: those that are gone must be taken away by name.
                before = chunks.get(ids=ids, include=["metadatas"])
                old = {chunk: dict(metadata or {}) for chunk, metadata in zip(*_pairs(before), strict=True)}
                chunks.upsert(
                    ids=ids,
                    embeddings=np.stack([item.embedding for item in batch]),
                    metadatas=[dict.fromkeys(old.get(item.chunk_id, ())) | _stored_metadata(item) for item in batch],
                )

    def query(
        self,
        tenant: str,
        embedding: npt.NDArray[np.float32],
        top_k: int,
        where: Mapping[str, Scalar] | None = None,
    ) -> list[str]:
        """Ids of the chunks nearest to the embedding, nearest first.

        Args:
            tenant: Whose chunks; one that has none gives none.
            embedding: A vector of the same model as the stored ones.
            top_k: How many at most.
            where: What the metadata of each must equal.
        """
        if not 1 <= top_k <= TOP_K_MAX:
            raise ValueError(f"top_k must be between 1 and {TOP_K_MAX}, not {top_k}")
        with self._chunks(tenant) as chunks:
            if chunks is None:
                return []
            found = chunks.query(query_embeddings=[embedding], n_results=top_k, where=_condition(where), include=[])
            return [str(chunk_id) for chunk_id in found["ids"][0]]

    def delete(self, tenant: str, chunk_ids: Sequence[str]) -> None:
        """Forgets the chunks; ids that are not there do no harm."""
        for start in range(0, len(chunk_ids), ITEMS_PER_BATCH):
            with self._writing, self._chunks(tenant) as chunks:
                if chunks is not None:
                    chunks.delete(ids=list(chunk_ids[start : start + ITEMS_PER_BATCH]))

    def delete_document(self, tenant: str, document_id: str) -> None:
        """Forgets every chunk of the document."""
        with self._writing, self._chunks(tenant) as chunks:
            if chunks is not None:
                chunks.delete(where={_DOCUMENT: document_id})

    def delete_tenant(self, tenant: str) -> None:
        """Forgets all of the tenant's chunks, and takes their files away."""
        with self._writing:
            with self._client(tenant) as client:
                if client is None:
                    return
                with contextlib.suppress(NotFoundError):
                    client.delete_collection(COLLECTION)
            self._remove_orphans()

    def count(self, tenant: str) -> int:
        """How many chunks the tenant has."""
        with self._chunks(tenant) as chunks:
            return 0 if chunks is None else int(chunks.count())

    def close(self) -> None:
        """Gives the directory up. No other call may be running or come after."""
        # Chroma gives its clients a way to let go of the directory, but not its admin client.
        self._admin._release_system(self._admin._identifier)
        self._root.close()
        os.close(self._lock_fd)

    @contextlib.contextmanager
    def _client(self, tenant: str) -> Iterator[Any]:
        # A client is a tenant's view on the one open database and costs a millisecond; keeping one a tenant would be a
        # cache to bound, and switching the tenant of a shared one is a race.
        _check_tenant(tenant)
        try:
            client = chromadb.Client(self._settings, tenant=tenant, database=DATABASE)
        except NotFoundError:
            yield None
            return
        with client:
            yield client

    @contextlib.contextmanager
    def _chunks(self, tenant: str) -> Iterator[Any]:
        with self._client(tenant) as client:
            try:
                chunks = None if client is None else client.get_collection(COLLECTION, embedding_function=None)
            except NotFoundError:
                chunks = None
            yield chunks

    @contextlib.contextmanager
    def _chunks_made(self, tenant: str) -> Iterator[Any]:
        """The tenant's chunks, made if need be. `_writing` must be held, or two threads could both be first."""
        with self._client(tenant) as client:
            known = client is not None
        if not known:
            # Each on its own: a process may have ended between the two.
            try:
                self._admin.get_tenant(tenant)
            except NotFoundError:
                self._admin.create_tenant(tenant)
            self._admin.create_database(DATABASE, tenant)
        with self._client(tenant) as client:
            yield client.get_or_create_collection(
                COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
            )

    def _remove_orphans(self) -> None:
        """Chroma leaves the vector files of a deleted collection behind for ever; this takes them away.

        The folders are listed before the database is read, so that one made in between is never taken for an orphan.
        """
        folders = [entry for entry in self._path.iterdir() if entry.is_dir() and _is_uuid(entry.name)]
        if not folders:
            return
        uri = f"{(self._path / 'chroma.sqlite3').absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_S)) as database:
            used = {str(row[0]) for row in database.execute("SELECT id FROM segments")}
        for folder in folders:
            if folder.name not in used:
                shutil.rmtree(folder)


def _own(path: Path, monotonic: Callable[[], float], sleep: Callable[[float], None]) -> int:
    """Locks the file for as long as the returned descriptor is open, and writes into it who did."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if monotonic() >= deadline:
                owner = os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "unknown"
                os.close(fd)
                raise VectorStoreOwned(str(path.parent), owner, OWNED_RETRY_AFTER_S) from None
            sleep(LOCK_POLL_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
    return fd


def _check_tenant(tenant: str) -> None:
    if TENANT_NAME.fullmatch(tenant) is None:
        raise ValueError(f"not a tenant's name: {tenant!r}")


def _stored_metadata(item: VectorItem) -> dict[str, Scalar]:
    return {_DOCUMENT: item.document_id} | {f"{_USER}{key}": value for key, value in item.metadata.items()}


def _condition(where: Mapping[str, Scalar] | None) -> dict[str, Any] | None:
    equals = [{f"{_USER}{key}": {"$eq": value}} for key, value in (where or {}).items()]
    if not equals:
        return None
    return equals[0] if len(equals) == 1 else {"$and": equals}


def _pairs(found: Any) -> tuple[list[str], list[Mapping[str, Scalar] | None]]:
    return found["ids"], found["metadatas"]


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False
