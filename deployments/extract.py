"""What text does a document hold: plain text, Markdown, HTML or PDF?

The promise: bytes in, normalised text and a title out, or a `DocumentError`. Nothing is ever fetched, whatever the
document refers to, and no document can hang, starve or end the service: HTML and PDF, whose readers can be made to
run for hours, are read in a process of their own under limits of CPU, memory, output and time, a few at once. Plain
text and Markdown only take time that grows with their length.

It does not read pictures of text, archives or Office files, and keeps no address of a link in HTML.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deployments import extract_child
from deployments.document_errors import DocumentTooLarge, ExtractorBusy, UnreadableDocument, UnsupportedDocument
from deployments.document_kind import Kind, charset_of, kind_of
from deployments.headings import first_heading
from deployments.plain_text import decode, looks_binary, normalise, one_line

TITLE_CHARS_MAX = 300
NAME_CHARS_MAX = 200


@dataclass(frozen=True, kw_only=True)
class ExtractedText:
    """Both normalised; neither is ever empty."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ExtractionLimits:
    """What one document may be and cost. The defaults let a thousand-page book pass on a slow core."""

    size_bytes_max: int = 20 * 1024 * 1024
    text_chars_max: int = 5_000_000
    pdf_pages_max: int = 2_000
    cpu_s: int = 40
    timeout_s: float = 60.0  # more than cpu_s, since the cores are shared
    memory_bytes: int = 1024 * 1024 * 1024
    processes_max: int = 2
    waiting_max: int = 64


class Extractor:
    """Reads documents; at most `processes_max` child processes at a time, also when callers have gone away."""

    def __init__(self, limits: ExtractionLimits) -> None:
        self._limits = limits
        # A thread for each child, and not asyncio's own subprocesses: the pool bounds the children even when calls are
        # cancelled, and works whatever event loop, in whatever thread, calls.
        self._threads = ThreadPoolExecutor(limits.processes_max, thread_name_prefix="extract")
        self._in_hand = 0

    async def extract(self, filename: str, content_type: str | None, data: bytes) -> ExtractedText:
        """The text of a document.

        Args:
            filename: as the sender calls it; of a path, only the last part counts.
            content_type: as declared, parameters included; None if nothing was.
            data: the document.

        Raises:
            DocumentError: one of its subclasses says why there is no text.
        """
        name = _base_name(filename)
        if len(data) > self._limits.size_bytes_max:
            raise DocumentTooLarge(name, f"has {len(data)} bytes; at most {self._limits.size_bytes_max} are read")
        if not data.strip():
            raise UnreadableDocument(name, "is empty")
        kind = kind_of(name, content_type, data)
        if kind is Kind.PDF:
            title, text = await self._read_apart(name, kind, data)
        else:
            text = await asyncio.to_thread(_decoded, name, data, charset_of(content_type, kind, data))
            title = ""
            if kind is Kind.HTML:
                title, text = await self._read_apart(name, kind, text.encode("utf-8", "ignore"))
        return await asyncio.to_thread(self._finished, name, kind, title, text)

    def close(self) -> None:
        """Takes no more documents. Children that are running end by themselves, within their limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _read_apart(self, name: str, kind: Kind, data: bytes) -> tuple[str, str]:
        if self._in_hand >= self._limits.waiting_max + self._limits.processes_max:
            raise ExtractorBusy(name, "too many documents are being read; send it again later")
        self._in_hand += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run_child, name, kind, data)
        finally:
            self._in_hand -= 1

    def _run_child(self, name: str, kind: Kind, data: bytes) -> tuple[str, str]:
        limits = self._limits
        asked = {
            "kind": kind.value,
            "name": name,
            "pages_max": limits.pdf_pages_max,
            "text_chars_max": limits.text_chars_max,
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
        }
        try:
            child = subprocess.run(  # noqa: S603 - our own program and interpreter; the document is its stdin only
                [sys.executable, "-I", str(Path(extract_child.__file__).resolve()), json.dumps(asked)],
                input=data,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=limits.timeout_s,
                env={},  # a parser of foreign bytes has no business with our keys
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UnreadableDocument(name, f"could not be read within {limits.timeout_s:g} s") from error
        if child.returncode != 0:
            # Killed by a limit, or crashed: the signal or code is for the one who debugs it.
            raise UnreadableDocument(name, f"took more time or memory than a document may (exit {child.returncode})")
        answer = json.loads(child.stdout)
        if "problem" in answer:
            error_class = DocumentTooLarge if answer["too_large"] else UnreadableDocument
            raise error_class(name, one_line(answer["problem"], 300))
        return answer["title"], answer["text"]

    def _finished(self, name: str, kind: Kind, title: str, text: str) -> ExtractedText:
        text = normalise(text).strip("\n")
        if not text.strip():
            raise UnreadableDocument(name, "holds no text")
        if len(text) > self._limits.text_chars_max:
            raise DocumentTooLarge(name, f"holds more than {self._limits.text_chars_max} characters of text")
        if kind is Kind.MARKDOWN:
            title = _front_matter_title(text) or first_heading(text)
        return ExtractedText(title=one_line(title, TITLE_CHARS_MAX) or name, text=text)


def _decoded(name: str, data: bytes, charset: str | None) -> str:
    text = decode(data, charset)
    if looks_binary(text):
        raise UnsupportedDocument(name, "is neither text nor PDF")
    return text


def _front_matter_title(text: str) -> str:
    """`title:` of the YAML block that some Markdown files begin with; one line of it is not worth a YAML parser."""
    block = re.match(r"---\n(.{0,4000}?\n)---\n", text, re.DOTALL)
    found = re.search(r"^title:[ \t]*(.+)$", block[1], re.MULTILINE) if block else None
    return found[1].strip().strip("'\"") if found else ""


def _base_name(filename: str) -> str:
    """What the document is called in titles and errors: never a path, never empty."""
    return one_line(re.split(r"[/\\]", filename)[-1][-NAME_CHARS_MAX:], NAME_CHARS_MAX) or "document"
