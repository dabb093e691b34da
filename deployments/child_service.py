"""Is the service there to be talked to, and if not, who starts it?

`ready_service` is a block in which the service answers: the one that runs already, or else one that is started as a
child process, as `make run` would start it, and has ended when the block is left, however it is left.

It never ends a service that it did not start, and never talks to a stranger that holds the port. It knows the service
by its HTTP interface alone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

import httpx
from rich.console import Console

from deployments import server

#: What `make run` runs.
COMMAND: Final = (sys.executable, "-m", "deployments")
CONNECT_WITHIN_S: Final = 10.0
ASK_WITHIN_S: Final = 10.0
#: A service that runs is ready, unless a part of it is just restarting.
READY_WITHIN_S: Final = 60.0
#: One that is started gives up by itself before that.
STARTED_WITHIN_S: Final = server.DEFAULT_READY_WITHIN_S + 120.0
STOPPED_WITHIN_S: Final = server.STOP_WITHIN_S + 10.0
POLL_EVERY_S: Final = 0.25


@contextmanager
def ready_service(
    client: httpx.Client, console: Console, signals: server.StopSignals, *, command: Sequence[str] = COMMAND
) -> Iterator[None]:
    """Within the block `client` reaches a service whose every part is ready.

    Args:
        client: Its base URL is where the service is, or will be by the configuration that a child inherits.
        console: Where a child's progress is told.
        signals: In force, so that a signal leaves the block; told to let nothing interrupt the end of a child.
        command: Starts a child, which ends at SIGINT.

    Raises:
        ServerError: something else holds the port, or the service does not get ready.
    """
    if _is_running(client):
        console.print(f"Using the service that runs at {client.base_url}")
        _wait_until_ready(client, within_s=READY_WITHIN_S)
        yield
        return
    console.print(f"No service runs at {client.base_url}: starting one")
    # A terminal that is closed ends the child too.
    on_hangup = signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    # In a session of its own, so that Ctrl-C comes to this process alone, which then asks the service to stop.
    child = subprocess.Popen(  # noqa: S603  a constant, or what the caller wrote
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    said_where = threading.Event()
    teller = threading.Thread(
        target=_tell, args=(child.stdout, console), kwargs={"until": (str(client.base_url), said_where)}, daemon=True
    )
    try:
        teller.start()
        with console.status("starting the service"):
            _wait_until_ready(client, within_s=STARTED_WITHIN_S, child=child)
            # Only for the looks: its last line says where it is, and should not come between what follows.
            said_where.wait(ASK_WITHIN_S)
        yield
    finally:
        signals.stopping = True
        # Nothing is printed before it: the terminal may be gone.
        _end(child)
        teller.join(ASK_WITHIN_S)
        if not teller.is_alive():
            child.stdout.close()
        signal.signal(signal.SIGHUP, on_hangup)


def _is_running(client: httpx.Client) -> bool:
    try:
        answer = client.get("/healthz", timeout=ASK_WITHIN_S).json()
    except httpx.ConnectError:
        return False
    except (httpx.HTTPError, ValueError):
        answer = None
    if answer != {"status": "ok"}:
        raise server.ServerError(
            f"{client.base_url} is held by something that does not answer as the service does. If it is the service, "
            "still starting, wait until it is ready; else choose another port: MOBULA_PORT=8001 make demo"
        )
    return True


def _wait_until_ready(client: httpx.Client, *, within_s: float, child: subprocess.Popen[str] | None = None) -> None:
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            answer = client.get("/readyz", timeout=ASK_WITHIN_S)
            if answer.is_success:
                return
            problem = answer.text
        except httpx.TransportError as error:
            problem = str(error) or type(error).__name__
        if child is not None and child.poll() is not None:
            raise server.ServerError("the service ended before it was ready")
        if time.monotonic() > deadline_s:
            raise server.ServerError(f"the service is not ready after {within_s:.0f} s: {problem}")
        time.sleep(POLL_EVERY_S)


def _tell(lines: IO[str], console: Console, *, until: tuple[str, threading.Event]) -> None:
    """Tells every line, and of the one that holds a text that it has come."""
    text, has_come = until
    for line in lines:
        console.print(line.rstrip(), style="dim", markup=False, soft_wrap=True)
        if text in line:
            has_come.set()


def _end(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGINT)
    try:
        child.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.kill()  # the next start ends what it leaves
        child.wait()
