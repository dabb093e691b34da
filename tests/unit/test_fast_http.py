"""Does the environment keep two services apart, and does the shim close HAProxy's side doors or refuse?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ray._common import tls_utils

from deployments import fast_http, loopback

CONFIG = """global
    log 127.0.0.1:514 local0 info
    nbthread 2
defaults
    log global
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:8404
  stats enable
"""


def start_shim(tmp_path: Path, config: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    file = tmp_path / "c"
    file.write_text(config)
    shim = tmp_path / fast_http.SHIM_NAME
    shim.write_text(fast_http.haproxy_shim(haproxy=Path("/bin/echo"), runtime_dir=tmp_path))
    shim.chmod(0o700)
    return subprocess.run([shim, "-db", "-f", file, "-dR"], capture_output=True, text=True, timeout=10), file


def test_statistics_and_metrics_become_sockets_and_haproxy_gets_its_own_arguments(tmp_path: Path) -> None:
    ran, file = start_shim(tmp_path, CONFIG)
    assert ran.stdout == f"-db -f {file} -dR\n"
    assert file.read_text() == CONFIG.replace(":9101", f"unix@{tmp_path}/metrics.sock mode 600").replace(
        "*:8404", f"unix@{tmp_path}/stats.sock mode 600"
    ).replace("    log 127.0.0.1:514 local0 info\n", "").replace(
        "frontend http_frontend\n",
        "frontend http_frontend\n    http-request set-header x-mobula-peer %[src]\n"
        "    http-request set-header x-request-disconnect-disabled ?1"
        " if { path_reg ^/ratelimit/check$ } || { path_reg ^/chat/sessions/[^/]+/messages$ }\n",
    )


@pytest.mark.parametrize(
    "changed",
    [
        CONFIG.replace("*:8404", "0.0.0.0:8404"),
        CONFIG.replace("bind :", "bind  *:"),
        CONFIG.replace("http_frontend", "front"),
    ],
)
def test_haproxy_is_not_started_when_the_template_has_changed(tmp_path: Path, changed: str) -> None:
    ran, file = start_shim(tmp_path, changed)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "not starting HAProxy" in ran.stderr
    assert file.read_text() == changed


def test_an_http_port_open_to_all_is_left_as_configured(tmp_path: Path) -> None:
    _, file = start_shim(tmp_path, CONFIG.replace("127.0.0.1:8000", "*:8000"))
    assert "bind *:8000" in file.read_text()


def test_haproxy_logs_where_somebody_has_named_a_place(tmp_path: Path) -> None:
    _, file = start_shim(tmp_path, CONFIG.replace("127.0.0.1:514", "127.0.0.1:5140"))
    assert "log 127.0.0.1:5140 local0 info" in file.read_text()


def test_two_services_share_no_path_and_no_port() -> None:
    one = fast_http.fast_http_environment(runtime_dir=Path("/nowhere/one"), fallback_port=1111, cores=2)
    two = fast_http.fast_http_environment(runtime_dir=Path("/nowhere/two"), fallback_port=2222, cores=2)
    assert {name for name in one if one[name].startswith("/nowhere")} == {name for name in one if "/" in one[name]}
    same = {name for name in one if one[name] == two[name]}
    assert not [name for name in same if name.endswith(("_PATH", "_LOC", "_BASE", "_FILE", "PROXY_HTTP_PORT"))]


def test_a_directory_is_fit_up_to_the_length_of_a_socket_path() -> None:
    longest = Path("/" + "d" * (fast_http.MAX_RUNTIME_DIR_BYTES - 1))
    socket = longest / ("0" * fast_http.NODE_ID_CHARACTERS) / "s"
    assert len(str(socket)) == fast_http.MAX_SOCKET_PATH_BYTES
    assert fast_http.fits_sockets(longest)
    assert not fast_http.fits_sockets(Path(f"{longest}d"))


@pytest.mark.parametrize("path", ["/a b", "/a'b", "/ä", "/a|b", "/a&b", "/a%b"])
def test_a_directory_that_haproxy_would_misread_is_not_fit(path: str) -> None:
    assert not fast_http.fits_sockets(Path(path))


def test_a_replica_binds_loopback_in_place_of_all_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[str] = []

    def bind(_server: object, address: str) -> int:
        bound.append(address)
        return 1234

    monkeypatch.setattr(tls_utils, "add_port_to_grpc_server", bind)
    loopback.install()
    assert tls_utils.add_port_to_grpc_server(object(), "[::]:0") == 1234
    tls_utils.add_port_to_grpc_server(object(), "10.0.0.1:5")
    assert bound == ["127.0.0.1:0", "10.0.0.1:5"]
