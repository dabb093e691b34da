"""Does the document for authors of durable classes say what happens? Its blocks are run, one after the other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from actors.runtime import connection, key_values, object_id, quarantine, sqlite
from actors.runtime.alarm import RETRIES_MAX
from actors.runtime.host_settings import HostSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "objects.md"
LINES_MAX = 120
RUN_WITHIN_S = 60.0


def test_the_document_is_short_and_its_blocks_print_what_it_shows(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    program = "\n".join(blocks)
    shown = re.findall(r"print\(.*?\)  # (.*)$", program, re.MULTILINE)
    (tmp_path / "reader.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "reader.py"], cwd=tmp_path, capture_output=True, text=True, timeout=RUN_WITHIN_S
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == shown
    assert shown


def test_the_limits_that_the_document_names_are_those_of_the_code() -> None:
    settings, megabyte = HostSettings(), 1024 * 1024
    text = " ".join(DOCUMENT.read_text().split())
    for named in (
        f"given up after {RETRIES_MAX} such retries",
        f"{settings.mailbox_calls_max:,} calls or {settings.mailbox_bytes_max // megabyte} MB are waiting",
        f"has waited for {settings.mailbox_age_max_s:g} s",
        f"ended its host {quarantine.CRASHES_MAX} times in a row",
        f"activation failed {quarantine.FAILURES_MAX} times",
        f"{connection.VALUE_BYTES_MAX // megabyte} MB in SQL",
        f"a row or what a statement makes {connection.ROW_BYTES_MAX // megabyte} MB",
        f"{key_values.VALUE_BYTES_MAX // megabyte} MB as JSON",
        f"a database {sqlite.DATABASE_BYTES_MAX // 1024**3} GB",
        f"tenant and name {object_id.STEM_BYTES_MAX} bytes",
        f"{settings.block_timeout_s:g} s at most",
    ):
        assert named in text, named
