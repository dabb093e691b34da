"""Where is the Ray cluster that a program is to join, and does it answer?

Ray itself tries for minutes, and says so again and again, where nobody listens, or where somebody does who is no Ray.
Here a cluster is asked whether it is alive, with a limit, before Ray is told to join it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import grpc
from ray._private import ray_constants, services
from ray._private.grpc_utils import init_grpc_channel

#: A cluster that lives answers at once.
ANSWER_TIMEOUT_S = 5.0
#: Clusters on one machine that are asked at once; there is rarely more than one.
_ASKED_AT_ONCE_MAX = 8

_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_CLIENT = "ray://"


def addresses_of(address: str) -> set[str]:
    """Where the cluster may be, as Ray will look for it."""
    if address != "auto":
        return {address}
    if named := os.environ.get("RAY_ADDRESS"):
        return {named}
    running = set(services.find_gcs_addresses())
    latest = services.find_bootstrap_address(None)
    # The latest one that was started by command; it decides where there are several, and may have ended long ago.
    return {latest} if latest is not None and len(running) != 1 else running


def require_one_answers(addresses: set[str], timeout_s: float = ANSWER_TIMEOUT_S) -> None:
    """Returns if a cluster answers at one of the addresses, or if Ray alone knows what one of them means.

    Raises:
        ConnectionError: there are some, and none does.
    """
    if not addresses:
        return  # Ray says so, at once
    with ThreadPoolExecutor(_ASKED_AT_ONCE_MAX) as asked:
        reasons = list(asked.map(lambda address: _why_not(address, timeout_s), sorted(addresses)))
    if all(reasons):
        raise ConnectionError("; ".join(filter(None, reasons)))


def _why_not(address: str, timeout_s: float) -> str | None:
    """What keeps the cluster at an address from being joined."""
    target = address.removeprefix(_CLIENT)
    _, separator, port = target.rpartition(":")
    if not separator or not port.isdecimal():
        return None  # a name that Ray knows what to do with
    if int(port) > 65535:
        return f"no Ray cluster answers at {address}: there is no such port"
    channel = init_grpc_channel(target, ray_constants.GLOBAL_GRPC_OPTIONS)
    try:
        channel.unary_unary(_CHECK_ALIVE)(b"", timeout=timeout_s)
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no Ray cluster answers at {address} within {timeout_s:g} s"
        if code is grpc.StatusCode.UNAVAILABLE:
            return f"no Ray cluster answers at {address}: {error.details()}"
        # The server of Ray's clients can't be asked this, and says so.
        if code is grpc.StatusCode.UNIMPLEMENTED and not address.startswith(_CLIENT):
            return f"what answers at {address} is no Ray cluster"
        # Any other answer is one of Ray's: that the token is wrong, for one, which it says again when it is joined.
    finally:
        channel.close()
    return None
