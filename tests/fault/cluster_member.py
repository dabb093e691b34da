"""Who runs a Ray cluster of its own on a data directory? A program that is started twice."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import ray

from actors.runtime.backend_ray import RayBackend, start
from actors.runtime.host_settings import HostSettings
from actors.runtime.placement import Cluster
from tests.fault.child import serve
from tests.objects import Notebook

#: As the tests' own cluster has it; Ray wants at least 75 MiB.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024


def cluster_on(data_dir: Path) -> Cluster:
    return Cluster(
        data_dir=data_dir,
        classes=(Notebook,),
        settings=HostSettings(slots=4),
        hosts=1,
        dedicated=frozenset({("solo", "Notebook")}),
    )


class Member:
    """Obeys the test."""

    def __init__(self, backend: RayBackend) -> None:
        self._backend = backend

    async def obey(self, order: dict[str, Any]) -> Any:
        """Makes one call of a notebook, or asks whether the pool is ready. An error is answered by name and text."""
        try:
            return {"value": await self._wanted(order)}
        except Exception as error:  # whatever it is, the test is told
            return {"error": type(error).__name__, "text": str(error)}

    def _wanted(self, order: dict[str, Any]) -> Awaitable[Any]:
        if "tenant" not in order:
            return self._backend.ready()
        stub = self._backend.namespace(Notebook).get(order["tenant"], "n")
        called: Awaitable[Any] = getattr(stub, order["method"])(*order["arguments"])
        return called


async def main() -> None:
    await serve(Member(start(cluster_on(Path(sys.argv[1])))).obey)


if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=1,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        configure_logging=False,
    )
    asyncio.run(main())
