"""A program: reads one PDF or HTML document in a process of its own, where it can hang, crash or be killed alone.

    python -I deployments/extract_child.py '{"kind": "pdf", ...}' <document >answer

The limits are taken on before a byte of the document is read or a parser is loaded: CPU time, memory, no file may be
written, no core dump. The answer is one JSON object, `{"title", "text"}` or `{"problem", "too_large"}`; no answer means
that a limit ended the process. It reads nothing but stdin and writes nothing but stdout.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

# Depth of nested elements that can be converted. Python calls take no C stack; the memory limit ends what is deeper.
_RECURSION_MAX = 50_000


def main(arguments: str) -> None:
    asked = json.loads(arguments)
    for limit, value in (
        (resource.RLIMIT_CPU, asked["cpu_s"]),
        (resource.RLIMIT_AS, asked["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    sys.setrecursionlimit(_RECURSION_MAX)
    data = sys.stdin.buffer.read()
    answer = _read(asked, data)
    # A lone surrogate, which a PDF can hold, has no UTF-8: escaped here, removed by the one who asked.
    sys.stdout.buffer.write(json.dumps(answer).encode("ascii"))


def _read(asked: dict[str, Any], data: bytes) -> dict[str, object]:
    from deployments.document_errors import DocumentError, DocumentTooLarge

    # Each reader's libraries take a good part of the time that a small document takes: only the one that is asked for.
    try:
        if asked["kind"] == "pdf":
            from deployments.pdf_text import read_pdf

            title, text = read_pdf(
                asked["name"], data, pages_max=asked["pages_max"], text_chars_max=asked["text_chars_max"]
            )
        else:
            from deployments.html_text import read_html

            title, text = read_html(data.decode("utf-8"))
    except DocumentError as error:
        return {"problem": error.problem, "too_large": isinstance(error, DocumentTooLarge)}
    except MemoryError:
        return {"problem": "needs more memory to read than a document may take", "too_large": True}
    except RecursionError:
        return {"problem": "is nested too deeply", "too_large": True}
    except Exception as error:
        # Parsers raise anything at all on broken input (KeyError, struct.error, ...), and every one of them means the
        # same: these bytes can't be read. The process ends after this, so nothing half-done is left behind.
        return {"problem": f"is broken ({type(error).__name__}: {str(error)[:200]})", "too_large": False}
    if len(text) > asked["text_chars_max"]:
        return {"problem": f"holds more than {asked['text_chars_max']} characters of text", "too_large": True}
    return {"title": title[:4096], "text": text}


if __name__ == "__main__":
    # Started by path and isolated (-I), so that neither the folder it is started in nor this one comes before the
    # standard library, with modules of the same names; the package is looked for last.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    main(sys.argv[1])
