"""What must be in the environment before Ray and Serve start, for the fast HTTP path and for loopback only?

Serve reads its settings from environment variables, once, when `ray.serve` is first imported, and every process of the
cluster inherits them from the one that calls `ray.init`. So a process that starts the service applies
`fast_http_environment` first, and imports `ray.serve` afterwards.

It promises: HAProxy in front of Serve, its files in a directory of this service alone (two services can run on one
machine), nothing listening off the loopback interface but, if so configured, the HTTP port itself. Ray calls the
setting that keeps its own servers on loopback `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER`, because on those systems loopback
is the default: without it, Ray replaces 127.0.0.1 by the machine's outward address, whatever `ray.init` is told. A
client in another process needs the same setting, see `client_environment`.

It starts nothing, and suits one node. A cluster of several sets the `FAST_HTTP_FLAGS` alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

FAST_HTTP_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Else a replica keeps what it logs, errors and what administrators did among it, until there are 1000 lines.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # Else HAProxy sends a line about each request to a process that parses and counts it, by application alone.
        # This way the replica that answers counts it, by its route.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Else replicas believe, before this service is asked, whatever X-Forwarded-For says of the client.
        "FORWARDED_ALLOW_IPS": "",
    }
)

# Serve's defaults, named because the shim has to find them in the file that Serve writes.
STATS_PORT: Final = 8404
METRICS_PORT: Final = 9101
#: Where Serve's default has HAProxy send a line about each request. Whoever names another listens there.
LOG_TARGET: Final = "127.0.0.1:514"
#: Serve's default number.
HAPROXY_THREADS_MAX: Final = 4

# HAProxy refuses longer paths for its sockets: 107 bytes, less what it appends while it renames a new socket in place.
MAX_SOCKET_PATH_BYTES: Final = 97
# Serve puts each node's files in a directory named by the node's id, 56 hexadecimal digits.
NODE_ID_CHARACTERS: Final = 56
MAX_RUNTIME_DIR_BYTES: Final = MAX_SOCKET_PATH_BYTES - NODE_ID_CHARACTERS - len("//s")

SHIM_NAME: Final = "haproxy-on-loopback"

#: In which HAProxy tells replicas who connected to it, in place of whatever the client sent under that name. That it
#: does is told by a variable: a HAProxy that somebody else has set up passes on what the client sent.
PEER_HEADER: Final = "x-mobula-peer"
PEER_HEADER_VARIABLE: Final = "MOBULA_PEER_HEADER"

#: With which Serve does not watch whether the client of a request is still there: two tasks fewer for each. Nobody need
#: be told when those go that are answered at once.
UNWATCHED_HEADER: Final = "x-request-disconnect-disabled"
UNWATCHED_PATHS: Final = ("^/ratelimit/check$", "^/chat/sessions/[^/]+/messages$")

# A path with any other character would need quoting in HAProxy's configuration, which Serve does not do.
PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9/._-]+")


def fits_sockets(runtime_dir: Path) -> bool:
    """Whether HAProxy's sockets and files can live under this directory."""
    path = str(runtime_dir)
    return len(path) <= MAX_RUNTIME_DIR_BYTES and PLAIN_PATH.fullmatch(path) is not None


def client_environment(ray_address: str) -> dict[str, str]:
    """What another process of the same user needs in its environment to reach this service's Ray."""
    return {"RAY_ADDRESS": ray_address, "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def fast_http_environment(*, runtime_dir: Path, fallback_port: int, cores: int) -> dict[str, str]:
    """The variables to set before `ray.serve` is imported.

    Args:
        runtime_dir: A directory of this service alone, short enough by `fits_sockets`, readable by its user only.
        fallback_port: A free port for the proxy behind HAProxy that answers while no replica does.
        cores: Of this machine.
    """
    return {
        **FAST_HTTP_FLAGS,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(runtime_dir / SHIM_NAME),
        # One-letter names: Serve adds 57 characters, and a socket's path has 97.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(runtime_dir / "c"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(runtime_dir / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(runtime_dir / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(runtime_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(runtime_dir / "t"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(STATS_PORT),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(METRICS_PORT),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        # More than there are cores only wake each other.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(cores, HAPROXY_THREADS_MAX)),
        # The 30 s default is for load balancers outside the cluster; here it would only make stopping take 30 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A call to an actor that was lost fails only when Ray has waited this long for word of its end, and looked at
        # the next heartbeat whether it has: by default 1 to 2 s together, as long as an object host takes to restart.
        "RAY_timeout_ms_task_wait_for_death_info": "200",
        "RAY_core_worker_internal_heartbeat_ms": "100",
        # The variable behind `runtime_env={"worker_process_setup_hook": …}`. Given here it holds for every worker, and
        # spares each actor a runtime environment of its own, which would keep it from using Ray's ready workers.
        "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "deployments.loopback.install",
        PEER_HEADER_VARIABLE: PEER_HEADER,
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def haproxy_shim(*, haproxy: Path, runtime_dir: Path) -> str:
    """A program for Serve to start in HAProxy's place, which takes the two side doors off the network, has HAProxy
    tell who connects and which requests need no watching, logs to nobody where nobody listens, and becomes it.

    Serve's template binds statistics and metrics to all interfaces, on ports that have no address setting and that two
    services would contend for. Here they become sockets that only the service's own user can open
    (`curl --unix-socket …/stats.sock http://localhost/stats`). Should a new Ray write these lines in another way, then
    HAProxy is not started at all, rather than started in the open.

    Serve recognises its HAProxy by process id and by the configuration's path in the command line: `exec` keeps both.
    """
    unwatched = " || ".join(f"{{ path_reg {path} }}" for path in UNWATCHED_PATHS)
    stats, metrics = (shlex.quote(str(runtime_dir / name)) for name in ("stats.sock", "metrics.sock"))
    return f"""#!/bin/sh
set -eu
config=
previous=
for argument; do
    if [ "$previous" = -f ]; then config=$argument; fi
    previous=$argument
done
if [ -n "$config" ]; then
    sed -e 's|^\\( *bind \\)\\*:{STATS_PORT}$|\\1unix@'{stats}' mode 600|' \\
        -e 's|^\\( *bind \\):{METRICS_PORT}$|\\1unix@'{metrics}' mode 600|' \\
        -e '/^ *log {re.escape(LOG_TARGET)} /d' \\
        -e '/^frontend http_frontend$/a\\    http-request set-header {PEER_HEADER} %[src]' \\
        -e '/^frontend http_frontend$/a\\    http-request set-header {UNWATCHED_HEADER} ?1 if {unwatched}' \\
        "$config" >"$config.closed"
    if [ "$(grep -c '^ *bind unix@.* mode 600$' "$config.closed")" != 2 ] ||
        [ "$(grep -c '^ *http-request set-header {PEER_HEADER} ' "$config.closed")" != 1 ]; then
        echo "statistics, metrics or the port are not where they were in Serve's template: not starting HAProxy" >&2
        exit 1
    fi
    mv "$config.closed" "$config"
fi
exec {shlex.quote(str(haproxy))} "$@"
"""
