"""Does the service start, refuse, survive being killed, and end without leaving anything?

A start takes some twenty seconds on two cores, so one service is shared. The test that kills it comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deployments.free_port import free_port

SCRIPT = Path(__file__).with_name("tiny_service.py")
BANNER = "the tiny service is up"
START_WITHIN_S = 120.0
END_WITHIN_S = 60.0
LOOK_FOR_S = 20.0


class Started:
    """A service in a process group of its own, as under a shell, with what it has said so far."""

    def __init__(self, port: int, data_dir: Path) -> None:
        self.port = port
        self.data_dir = data_dir
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), str(data_dir), BANNER],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> Started:
        assert self.process.stdout is not None
        limit = threading.Timer(START_WITHIN_S, self.process.kill)
        limit.start()
        try:
            for line in self.process.stdout:
                self.said += line
                if text in line:
                    return self
        finally:
            limit.cancel()
        raise AssertionError(f"ended without saying {text!r}:\n{self.said}")

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        rest, _ = self.process.communicate(timeout=END_WITHIN_S)
        self.said += rest
        return self.process.returncode

    def ask(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.port}/", timeout=10.0).raise_for_status().text


def alive_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=5)
    return [process for process in alive if lives(process)]


def lives(process: psutil.Process) -> bool:
    """Whether it still runs: one that waits for its parent to take note of its end does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def refusal(port: int, data_dir: Path) -> str:
    refused = Started(port, data_dir)
    assert refused.end() == 1, refused.said
    assert "Traceback" not in refused.said
    return refused.said


def named(name: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that are called so; one that has ended meanwhile is called nothing."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == name:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    started = Started(free_port(), tmp_path_factory.mktemp("data"))
    try:
        yield started.read_until(BANNER)
    finally:
        if started.process.poll() is None:
            started.process.send_signal(signal.SIGINT)
        started.end()


def test_the_application_answers(service: Started) -> None:
    assert service.ask() == "tiny"


def listeners(service: Started) -> set[tuple[str, str, int]]:
    """Name, address and port of everything that the service's processes listen on."""
    listening: set[tuple[str, str, int]] = set()
    for process in service.tree():
        # Ray ends workers that it has no use for at any time; one that is gone listens nowhere.
        with contextlib.suppress(psutil.NoSuchProcess):
            listening |= {
                (process.name(), connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    return listening


def test_every_process_listens_on_loopback_only(service: Started) -> None:
    deadline_s = time.monotonic() + LOOK_FOR_S
    listening = listeners(service)
    # Serve reloads HAProxy now and then, which puts a new process in the place of the one that was found.
    while service.port not in {port for _, _, port in listening} and time.monotonic() < deadline_s:
        listening = listeners(service)
    assert {name for name, _, port in listening if port == service.port} == {"haproxy"}
    assert {ip for _, ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, sorted(listening)


def test_statistics_and_metrics_are_for_the_own_user_only(service: Started) -> None:
    runtime_dir = Path(json.loads((service.data_dir / "run" / "run.json").read_text())["runtime_dir"])
    assert runtime_dir.stat().st_mode & 0o077 == 0
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(runtime_dir / "stats.sock")), timeout=10.0) as client:
        assert client.get("http://localhost/stats").status_code == 200


def test_a_second_service_on_the_same_data_is_refused(service: Started) -> None:
    said = refusal(free_port(), service.data_dir)
    assert f"process {service.process.pid}, port {service.port}" in said
    assert str(service.data_dir) in said
    assert service.ask() == "tiny"


def test_a_foreign_listener_on_the_port_is_named_and_left_alone(service: Started, tmp_path: Path) -> None:
    said = refusal(service.port, tmp_path)
    assert f"port {service.port} is in use by process" in said
    assert "(haproxy)" in said
    assert service.ask() == "tiny"


@pytest.mark.parametrize("moment", ["starting Ray", "starting Serve"])
def test_a_signal_during_start_up_ends_it_without_leaving_a_process(tmp_path: Path, moment: str) -> None:
    starting = Started(free_port(), tmp_path).read_until(moment)
    session = starting.process.pid
    starting.process.send_signal(signal.SIGTERM)
    assert starting.end() == 0, starting.said
    assert alive_of([process for process in psutil.process_iter() if session_of(process.pid) == session]) == []


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_a_killed_service_starts_again_on_its_port_and_data_and_ends_on_ctrl_c(service: Started) -> None:
    first = service.tree()
    (haproxy,) = named("haproxy", first)
    for process in first:
        if process != haproxy:
            process.kill()
    service.process.wait(timeout=END_WITHIN_S)
    assert haproxy.is_running()

    again = Started(service.port, service.data_dir).read_until(BANNER)
    assert f"left by an earlier run: {haproxy.pid}" in again.said
    assert alive_of(first) == []
    assert again.ask() == "tiny"

    second = again.tree()
    again.press_ctrl_c()
    assert again.end() == 0, again.said
    assert alive_of(second) == []
    assert not (service.data_dir / "run" / "run.json").exists()
