"""How does a program get at the objects of a cluster?

The service starts them, or joins them where they run already; any other process on the Ray cluster connects to them.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import RayTaskError

from actors.runtime.backend_ray.address import addresses_of, require_one_answers
from actors.runtime.backend_ray.backend import RayBackend
from actors.runtime.backend_ray.control import Control
from actors.runtime.backend_ray.named import ACTOR_OPTIONS, CONTROL_PREFIX, NAMESPACE, START_TIMEOUT_S
from actors.runtime.placement import Cluster


def start(cluster: Cluster) -> RayBackend:
    """Starts the hosts of `cluster` on the Ray cluster of this process, or joins them where they run already.

    Any number of processes may call it at once with an equal `cluster`. A different one replaces the hosts.
    """
    name = f"{CONTROL_PREFIX}{cluster.fingerprint}"
    options: dict[str, Any] = {**ACTOR_OPTIONS, "name": name, "namespace": NAMESPACE, "max_concurrency": 1000}
    if cluster.host_resource:
        options["resources"] = {cluster.host_resource: 0.001}
    return RayBackend(ray.remote(Control).options(**options).remote(cluster), cluster)


def connect(address: str = "auto") -> RayBackend:
    """Stubs for objects that a running service hosts, from any process on its Ray cluster.

    Args:
        address: of the Ray cluster; used only if this process has not joined one yet.

    Raises:
        ConnectionError: no Ray cluster, or no objects are hosted on it.
        ClassesRefused, SlotOwned: objects would be hosted on it, were it not for this.
    """
    if not ray.is_initialized():
        addresses = addresses_of(address)
        require_one_answers(addresses)
        _allow_loopback(addresses)
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    refusal: Exception | None = None
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(CONTROL_PREFIX):
            control = ray.get_actor(actor["name"], namespace=NAMESPACE)
            try:
                return RayBackend(control, ray.get(control.cluster.remote(), timeout=START_TIMEOUT_S))
            except RayTaskError as failed:
                refusal = failed.cause  # one deployment that was refused may stand beside one that runs
    if refusal is not None:
        raise refusal
    raise ConnectionError("no durable objects are hosted on this Ray cluster; start the service first")


def _allow_loopback(addresses: set[str]) -> None:
    """Lets this process join a cluster that listens on 127.0.0.1 alone, as `make run` starts it.

    Ray replaces 127.0.0.1 by the machine's outward address, where such a cluster does not listen, unless told that the
    cluster is of a kind that lives on loopback. It reads the variable once, on import, which has happened here. It also
    sends its user's token only where the cluster was found and not named.
    """
    if any(found.startswith("127.0.0.1:") for found in addresses):
        logging.getLogger("ray").setLevel(logging.ERROR)  # as `ray.init` is told, later; this says what it does
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
