"""What can be wrong with a document that somebody sends?

Every error names the document and says the problem in words fit for its sender; neither field holds anything of the
service's own (no path, no trace). They cross process boundaries by pickle, so each passes all of its constructor
arguments to `Exception`. What they do not do: speak of the storage or the network, which fail with errors of their own.

    DocumentError(name, problem)
    ├ UnsupportedDocument       not text, Markdown, HTML or PDF
    ├ UnreadableDocument        of a supported type, but broken, encrypted or without text
    │  └ DocumentTooLarge       more bytes, pages or characters than one document may have
    └ ExtractorBusy             retryable: too many documents are being read already
"""

from __future__ import annotations


class DocumentError(Exception):
    """Root of what a document can do wrong. Sending the same bytes again does not help, unless `retryable`."""

    retryable: bool = False
    retry_after_s: float | None = None

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class UnsupportedDocument(DocumentError):
    """The bytes are of a type that no reader here is for."""


class UnreadableDocument(DocumentError):
    """The type is known, and yet no text could be had from the bytes."""


class DocumentTooLarge(UnreadableDocument):
    """Reading was refused, or stopped, at a limit."""


class ExtractorBusy(DocumentError):
    """Nothing is wrong with the document: its turn did not come because the queue is full."""

    retryable = True
    retry_after_s = 5.0
