"""Does the document for OpenAI's clients say what happens? Its blocks are run, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import Service

DOCUMENT = Path(__file__).parents[2] / "docs" / "openai.md"
RUN_WITHIN_S = 120.0


def test_the_blocks_of_the_document_run(service: Service, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "reader.py").write_text("\n".join(blocks))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "reader.py"],
        cwd=tmp_path,
        env={**os.environ, "MOBULA_URL": service.url},
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN_S,
    )
    assert ran.returncode == 0, ran.stderr
    assert "2 384" in ran.stdout
    # What the model wrote before need not end with a line.
    assert ran.stdout.rstrip().endswith("['user', 'user', 'assistant']")
