"""Does a program outside the service reach its objects, as the example shows it?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from deployments.fast_http import client_environment
from tests.integration.conftest import Service

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "python_caller.py"
RUN_WITHIN_S = 120.0


def run_caller(service: Service) -> list[str]:
    environ = service.ray_environ
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        # What the service itself tells its user to set.
        env={**environ, **client_environment(environ["RAY_ADDRESS"])},
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN_S,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def messages_told(line: str) -> int:
    told = re.fullmatch(r"the session holds (\d+) messages", line)
    assert told is not None, line
    return int(told[1])


def test_another_process_uses_the_objects_of_the_service_and_finds_them_again(service: Service) -> None:
    first = run_caller(service)
    assert first[1] == "5 of 20 checks at once were allowed"
    second = run_caller(service)
    assert second[1] == "5 of 20 checks at once were allowed"
    assert messages_told(second[2]) == messages_told(first[2]) + 1
