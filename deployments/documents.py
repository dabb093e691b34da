"""What do ingest, search and the ingress say to each other about documents?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from actors.document_index import Passage, Scalar

#: The name of the `DocumentIndex` that holds a tenant's documents.
INDEX_NAME = "documents"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDocument:
    """A document as it was sent: `text`, or else the bytes of a file."""

    id: str | None = None
    title: str | None = None
    text: str | None = None
    filename: str = "document"
    content_type: str | None = None
    data: bytes = b""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


class Ingested(NamedTuple):
    """What became of one document.

    `error` is for its sender, and None unless it failed; `retryable` says that the same document may not fail later.
    """

    document_id: str
    chunks: int
    status: Literal["stored", "unchanged", "failed"]
    error: str | None = None
    retryable: bool = False

    def shown(self) -> dict[str, Any]:
        """What a client is told."""
        return {
            "document_id": self.document_id,
            "chunks": self.chunks,
            "status": self.status,
            "error": self.error,
        }


class Found(NamedTuple):
    """Passages, best first, and whether an earlier search had found them."""

    passages: list[Passage]
    cached: bool


def passage_of(source: Mapping[str, Any]) -> Passage:
    """The passage that a client was shown, as far as it was."""
    return {
        "id": source["chunk_id"],
        "document_id": source["document_id"],
        "title": source["title"],
        "heading": "",
        "text": source["text"],
        "start": source["start"],
        "end": source["end"],
        "metadata": {},
    }


def source_of(passage: Passage) -> dict[str, Any]:
    """What a client is shown of a passage: enough to find and quote it, and nothing of how it was ranked."""
    return {
        "document_id": passage["document_id"],
        "chunk_id": passage["id"],
        "title": passage["title"],
        "text": passage["text"],
        "start": passage["start"],
        "end": passage["end"],
    }
