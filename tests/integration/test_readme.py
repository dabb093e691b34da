"""Does the README say what happens? Its blocks are run, and what they print is compared with what it shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.conftest import Service

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def shape(value: Any) -> Any:
    """The keys of JSON, at every depth; of a list, the shape of its first element."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def structure(output: str) -> list[tuple[str, Any]]:
    """What an output is made of: each kind of line once, with the shape of its JSON."""
    parts: list[tuple[str, Any]] = []
    event = ""
    for line in output.splitlines():
        if line.startswith("event: "):
            event = line
        elif line.startswith(("{", "data: {")):
            part = (event, shape(json.loads(line.removeprefix("data: "))))
            if part not in parts:
                parts.append(part)
            event = ""
    return parts


def commands_and_output(session: str) -> tuple[str, str]:
    lines = session.splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join(commands), "\n".join(line for line in lines if not line.startswith("$ "))


def table(output: str) -> list[str]:
    """The lines, with spaces and numbers as in any other table, and every object asleep."""
    lines = [re.sub(r"\d+", "0", " ".join(line.split())) for line in output.splitlines()]
    return [re.sub(r" resident$", " asleep", line) for line in lines]


def test_the_session_in_the_shell_goes_as_shown(service: Service) -> None:
    script, shown = commands_and_output(blocks("console")[0])
    script = script.replace("http://127.0.0.1:8000", service.url)
    done = subprocess.run(["bash", "-eu", "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert structure(done.stdout) == structure(shown)


def test_looking_inside_goes_as_shown_after_what_was_done_above(service: Service, tmp_path: Path) -> None:
    environ = {**service.ray_environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", blocks("python")[0]], env=environ, timeout=120, check=True)
    script, shown = commands_and_output(blocks("console")[1])
    script = script.replace(".venv/bin/python", sys.executable)
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert table(done.stdout) == table(shown)
    assert (tmp_path / "from-python.sqlite").stat().st_size > 0


def test_every_python_block_runs(service: Service) -> None:
    for block in blocks("python"):
        assert len(block.splitlines()) < 40
        done = subprocess.run(
            [sys.executable, "-c", block], env=service.ray_environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in ("hello", "[1, 2, 3]")


def test_every_route_of_the_table_exists_and_every_route_is_in_the_table(service: Service) -> None:
    with service.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    offered = {(method.upper(), re.sub(r"{.*}", "{}", path)) for path, methods in paths.items() for method in methods}
    listed = set()
    for row in re.findall(r"^\| (`(?:GET|POST).*?) \|", README, re.MULTILINE):
        methods: list[str] = []
        for part in re.findall(r"`([^`]+)`", row):
            words = part.split()
            methods.append(words[0])
            if len(words) == 2:
                listed |= {(method, re.sub(r"{.*}", "{}", words[1])) for method in methods}
                methods = []
    assert listed == offered
