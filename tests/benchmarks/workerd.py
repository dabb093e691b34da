"""Cloudflare's own Durable Objects runtime, doing the same authenticated, limited job with the same paths.

It comes from the npm package `workerd`, and is kept in a folder between runs.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from deployments.free_port import free_port

#: Pinned, since figures are compared with those of other days.
PACKAGE = "workerd@1.20261117.1"
CODE = Path(__file__).parent / "peers" / "workerd"
START_WITHIN_S = 30.0
LOOK_EVERY_S = 0.05


class Unavailable(Exception):
    """It can't be had here; says why."""


class Workerd:
    """A running one."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self.url = url
        self._process = process

    @property
    def memory_bytes(self) -> int:
        return int(self._process.memory_info().rss)


@contextlib.contextmanager
def running(peers_dir: Path) -> Iterator[Workerd]:
    """Starts it on 127.0.0.1, its objects in a fresh folder.

    Args:
        peers_dir: where it is installed, or will be.

    Raises:
        Unavailable: it can't be installed or started.
    """
    binary = _installed(peers_dir / "workerd")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mobula-workerd-") as folder:
        shutil.copytree(CODE, folder, dirs_exist_ok=True)
        (Path(folder) / "do").mkdir()
        command = [str(binary), "serve", "config.capnp", "--socket-addr", f"http=127.0.0.1:{port}"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _wait_for(process, port)
            yield Workerd(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        finally:
            process.kill()
            process.communicate()


def _installed(folder: Path) -> Path:
    binary = folder / "node_modules" / ".bin" / "workerd"
    if not binary.exists():
        if shutil.which("npm") is None:
            raise Unavailable("npm, which workerd comes by, is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["npm", "install", "--silent", "--prefix", str(folder), PACKAGE],
                check=True,
                timeout=300,
                stdin=subprocess.DEVNULL,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise Unavailable(f"npm could not install {PACKAGE}: {error}") from error
    return binary


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    give_up_s = time.monotonic() + START_WITHIN_S
    while time.monotonic() < give_up_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            assert process.stderr is not None
            raise Unavailable(f"workerd ended: {process.stderr.read(500)!r}")
        time.sleep(LOOK_EVERY_S)
    raise Unavailable(f"workerd did not listen within {START_WITHIN_S:g} s")
