"""Does a process that does what may hang take no more than it may have?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.runtime import child, limited
from actors.runtime.child import GRACE_S, ChildEnded, ChildLimits, Program, Why, answer_of

LIMITS = ChildLimits(timeout_s=5.0, memory_bytes=256 * 1024 * 1024, file_bytes=1024, answer_bytes_max=4 * 1024 * 1024)
BRIEF = ChildLimits(timeout_s=0.1, memory_bytes=256 * 1024 * 1024, file_bytes=0, answer_bytes_max=1024)


def program(folder: Path, code: str) -> Program:
    path = folder / "program.py"
    path.write_text("import json, os, sys, time\n" + textwrap.dedent(code))
    return Program(path=path)


def ended(folder: Path, code: str, limits: ChildLimits = LIMITS, **asked: Any) -> ChildEnded:
    with pytest.raises(ChildEnded) as caught:
        answer_of(program(folder, code), asked, limits, stopped=lambda: False)
    assert psutil.Process().children() == []
    return caught.value


def test_what_is_asked_and_answered_may_be_large(tmp_path: Path) -> None:
    echo = program(tmp_path, "print(flush=True); print(json.dumps(json.load(sys.stdin)))")
    asked = {"text": "é\n" * 200_000}
    assert answer_of(echo, asked, LIMITS, stopped=lambda: False) == asked


def test_a_program_need_not_read_what_it_is_asked(tmp_path: Path) -> None:
    deaf = program(tmp_path, "print(); print('{}')")
    assert answer_of(deaf, {"text": "x" * 1_000_000}, LIMITS, stopped=lambda: False) == {}


def test_a_program_finds_the_standard_library_and_nothing_of_its_surroundings(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('another json')")
    told = "print(); print(json.dumps({'home': os.environ.get('HOME'), 'path': sys.path}))"
    answer = answer_of(program(tmp_path, told), {}, LIMITS, stopped=lambda: False)
    assert answer["home"] is None
    assert answer["path"]
    assert not [path for path in answer["path"] if "site-packages" in path or path == str(tmp_path)]


def test_a_program_that_hangs_is_killed_in_time(tmp_path: Path) -> None:
    began_s = time.monotonic()
    assert ended(tmp_path, "print(flush=True); time.sleep(60)", BRIEF).why is Why.LATE
    assert GRACE_S <= time.monotonic() - began_s < GRACE_S + 3.0


def test_a_program_that_never_begins_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_MAX_S", 0.2)
    assert ended(tmp_path, "time.sleep(60)").why is Why.NOT_STARTED


@pytest.mark.parametrize(
    "code",
    [
        "print(); sys.exit(0)",
        "print(); print('{')",
        "print(); os.abort()",
        "print(flush=True); bytearray(10**9); print('{}')",
        "print(flush=True); print('\"' + 'x' * 10_000_000 + '\"')",
        "print(flush=True); open('written', 'wb', 0).writelines([b'x' * 1024, b'x']); print('{}')",
    ],
    ids=["silent", "cut short", "crashed", "memory", "answer", "file"],
)
def test_a_program_that_breaks_or_takes_too_much_gives_no_answer(
    tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(tmp_path, code).why is Why.DIED


def test_a_program_is_killed_when_its_host_stops(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    began_s = time.monotonic()
    with pytest.raises(ChildEnded) as caught:
        answer_of(
            program(tmp_path, f"open({str(begun)!r}, 'w'); print(flush=True); time.sleep(60)"),
            {},
            LIMITS,
            stopped=begun.exists,
        )
    assert caught.value.why is Why.STOPPED
    assert time.monotonic() - began_s < 3.0


def test_a_program_whose_parent_was_gone_before_does_nothing(tmp_path: Path) -> None:
    did = tmp_path / "did"
    path = program(tmp_path, f"open({str(did)!r}, 'w')").path
    for parent, code in ((os.getpid() + 1, 1), (os.getpid(), 0)):
        assert not did.exists()
        asked = json.dumps({"program": str(path), "parent": parent, "folders": [], "limits": {}})
        done = subprocess.run([sys.executable, "-I", "-S", limited.__file__, asked], env={}, check=False)
        assert done.returncode == code
    assert did.exists()
