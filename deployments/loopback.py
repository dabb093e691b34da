"""What keeps a Serve replica from listening on every interface?

Every Ray Serve replica opens a server for calls from other deployments on `[::]:0`: all interfaces, a port of the
kernel's choice, no authentication, and it unpickles what it receives. Whoever reaches that port runs code in the
replica. Ray has no setting for the address. This module is run in each worker process before it takes work, as Ray's
worker process setup hook, and makes Ray's helper bind the loopback interface instead.

It promises that a worker which could not be changed does not start (Ray ends a worker whose hook fails). It does
nothing for a cluster of several nodes, where replicas must reach each other: there the network has to be closed by
the cluster's own means.
"""

from __future__ import annotations

from ray._common import tls_utils

ALL_INTERFACES = "[::]:"
LOOPBACK = "127.0.0.1:"


def install() -> None:
    """Replace Ray's helper, before anything in this process has imported it by name."""
    bind = tls_utils.add_port_to_grpc_server

    def add_port_on_loopback(server: object, address: str) -> int:
        if address.startswith(ALL_INTERFACES):
            address = LOOPBACK + address.removeprefix(ALL_INTERFACES)
        port: int = bind(server, address)
        return port

    tls_utils.add_port_to_grpc_server = add_port_on_loopback
