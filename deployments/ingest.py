"""How does a document become searchable?

Text is extracted, cut into chunks and embedded; then the vectors are stored, then the document with its chunks in the
tenant's `DocumentIndex`, which makes it count, and then the vectors that it replaced are removed. Whatever fails before
the index changes leaves the old version as it was. A document whose content is stored already is not done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from actors import DocumentIndex, DurableError, Objects
from actors.document_index import DocumentEntry, NewChunk, Scalar
from actors.runtime.namespace import Stub
from deployments.chunk import Chunk, Chunker
from deployments.document_errors import DocumentError, DocumentTooLarge, UnreadableDocument
from deployments.documents import INDEX_NAME, Ingested, NewDocument
from deployments.encoder import TEXTS_MAX
from deployments.errors import ServiceError
from deployments.extract import ExtractionLimits, Extractor
from deployments.plain_text import normalise, one_line
from deployments.vector_store import VectorItem
from deployments.vectors import Vectors

logger = logging.getLogger("mobula.ingest")

REQUESTS_AT_ONCE_MAX = 64
_WORD = re.compile(r"\w")
#: Documents, of all requests, that are worked on side by side: one is embedded while the next is read.
DOCUMENTS_AT_ONCE = 2


class Ingest:
    """Stores and removes documents."""

    def __init__(
        self,
        *,
        connect: Callable[[], Objects],
        limits: ExtractionLimits,
        embedding: DeploymentHandle,
        vectors: Vectors,
        chunker: Chunker | None = None,
        new_version: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        self._documents = connect().namespace(DocumentIndex)
        self._limits = limits
        self._extractor = Extractor(limits)
        self._chunker = chunker or Chunker()
        self._embedding = embedding
        self._vectors = vectors
        self._new_version = new_version
        self._turns = asyncio.Semaphore(DOCUMENTS_AT_ONCE)
        self._model_id = ""

    async def store(self, tenant: str, documents: Sequence[NewDocument]) -> list[Ingested]:
        """Stores each document, or says what is wrong with it. One that fails keeps none of the others from it."""
        self._model_id = self._model_id or await self._embedding.model_id.remote()
        return list(await asyncio.gather(*[self._store_one(tenant, document) for document in documents]))

    async def remove(self, tenant: str, document_id: str) -> bool:
        """Removes a document from index and vectors. False if there is none."""
        chunk_ids: list[str] | None = await self._index(tenant).delete(document_id)
        if chunk_ids is None:
            return False
        if chunk_ids:
            await self._vectors.delete(tenant, chunk_ids)
        return True

    async def ready(self) -> bool:
        """Raises what keeps documents from being embedded or stored."""
        self._model_id = self._model_id or await self._embedding.model_id.remote()
        return await self._vectors.ready()

    async def _store_one(self, tenant: str, document: NewDocument) -> Ingested:
        name = document.id or one_line(document.filename, 200) or "document"
        async with self._turns:
            try:
                title, text = await self._text_of(document)
                document_id = document.id or (
                    name if document.text is None else "d" + _digest([title, text, dict(document.metadata)])[:24]
                )
                return await self._store_text(tenant, document_id, title, text, document.metadata)
            except DocumentError as error:
                return Ingested(name, 0, "failed", error.problem, error.retryable)
            except (DurableError, ServiceError) as error:
                logger.warning("tenant=%s ingest failed: %s", tenant, error)
                again = "; send it again later" if error.retryable else ""
                return Ingested(name, 0, "failed", f"could not be stored{again}", error.retryable)
            except (RayActorError, BackPressureError, DeploymentUnavailableError) as error:
                logger.warning("tenant=%s ingest failed: the embedding was lost or is busy: %s", tenant, error)
                return Ingested(name, 0, "failed", "could not be stored; send it again later", retryable=True)

    async def _text_of(self, document: NewDocument) -> tuple[str, str]:
        if document.text is None:
            extracted = await self._extractor.extract(document.filename, document.content_type, document.data)
            return document.title or extracted.title, extracted.text
        text = await asyncio.to_thread(normalise, document.text)
        name = document.id or "document"
        if len(text) > self._limits.text_chars_max:
            raise DocumentTooLarge(name, f"holds more than {self._limits.text_chars_max} characters of text")
        if not text.strip():
            raise UnreadableDocument(name, "holds no text")
        return one_line(document.title or document.id or text, 300) or "document", text

    async def _store_text(
        self, tenant: str, document_id: str, title: str, text: str, metadata: Mapping[str, Scalar]
    ) -> Ingested:
        content_hash = _digest([title, text, dict(metadata), self._chunker.version, self._model_id])
        index = self._index(tenant)
        if (await index.content_hashes([document_id])).get(document_id) == content_hash:
            entry: DocumentEntry | None = await index.get(document_id)
            if entry is not None:
                return Ingested(document_id, entry["chunk_count"], "unchanged")
        pieces = await asyncio.to_thread(self._chunker.chunk, text)
        # What holds no word, such as a line that ends a code block, can answer nothing.
        pieces = [piece for piece in pieces if _WORD.search(piece.text)]
        # A version of its own for each attempt: what another attempt stores or removes meanwhile can't be this one's.
        version = self._new_version()
        chunks = [_chunk(document_id, version, piece) for piece in pieces]
        await self._store_vectors(tenant, document_id, title, chunks, metadata)
        replaced: list[str] = await index.put(
            document_id, title=title, text=text, metadata=dict(metadata), content_hash=content_hash, chunks=chunks
        )
        if replaced:
            try:
                await self._vectors.delete(tenant, replaced)
            except ServiceError as error:
                # The document is stored; no search counts a vector whose chunk the index no longer has.
                logger.warning("tenant=%s %d replaced vectors are left over: %s", tenant, len(replaced), error)
        return Ingested(document_id, len(chunks), "stored")

    async def _store_vectors(
        self, tenant: str, document_id: str, title: str, chunks: Sequence[NewChunk], metadata: Mapping[str, Scalar]
    ) -> None:
        for start in range(0, len(chunks), TEXTS_MAX):
            some = chunks[start : start + TEXTS_MAX]
            # The title and headings say what a passage from the middle of something is about.
            texts = ["\n".join(filter(None, (title, chunk["heading"], chunk["text"]))) for chunk in some]
            vectors = await self._embedding.embed.remote(texts)
            items = [
                VectorItem(chunk_id=chunk["id"], document_id=document_id, embedding=vector, metadata=dict(metadata))
                for chunk, vector in zip(some, vectors, strict=True)
            ]
            await self._vectors.upsert(tenant, items)

    def _index(self, tenant: str) -> Stub[DocumentIndex]:
        return self._documents.get(tenant, INDEX_NAME)


def _chunk(document_id: str, version: str, piece: Chunk) -> NewChunk:
    # The last two parts hold no colon, so no two documents share an id.
    return {
        "id": f"{document_id}:{version}:{piece.ordinal}",
        "heading": piece.heading,
        "text": piece.text,
        "start": piece.start,
        "end": piece.end,
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
IngestDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=REQUESTS_AT_ONCE_MAX,
    max_queued_requests=REQUESTS_AT_ONCE_MAX,
    ray_actor_options={"num_cpus": 0.2},
)(Ingest)
