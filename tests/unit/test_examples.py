"""Do the examples that need no cluster do what they say?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RUN_WITHIN_S = 60.0
LINES_MAX = 40


def run_counter(folder: Path, *, environ: dict[str, str]) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "counter.py"), str(folder)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN_S,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_counter_goes_on_counting_where_an_earlier_process_left_off(tmp_path: Path) -> None:
    # Whoever tried to start or join Ray here would fail: nothing listens at that address.
    environ = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    assert run_counter(tmp_path, environ=environ) == "found 0, added: [1, 2, 3, 4, 5]\n"
    assert run_counter(tmp_path, environ=environ) == "found 5, added: [6, 7, 8, 9, 10]\n"


def test_a_counter_without_a_folder_says_what_it_needs() -> None:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "counter.py")], capture_output=True, text=True, timeout=RUN_WITHIN_S
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("usage: ")
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda example: example.name)
def test_an_example_stays_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < LINES_MAX
