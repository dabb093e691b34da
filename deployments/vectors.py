"""Who owns the vectors in a cluster, and how does everyone else reach them?

Promise: one detached Ray actor, `vectors`, owns the directory. It is made by whoever needs it first, is started again
by Ray when it dies, and every call that returned before is still true afterwards. Calls may be repeated without harm,
and are: what was under way when the actor died is done again by Ray, so that the caller of `Vectors` sees a pause. A
call takes no longer than `timeout_s`, then it ends in `VectorsUnavailable`.

A call that ended in `VectorsUnavailable` may still be carried out later, even after a call made since. So an id that
a query gives says only what to look up: whether the chunk still exists, the document index knows.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, PendingCallsLimitExceeded, RayActorError

from deployments.errors import VectorsUnavailable
from deployments.vector_store import Scalar, VectorItem, VectorStore

ACTOR_NAME = "vectors"
NAMESPACE = "mobula"
CONCURRENCY_MAX = 8
PENDING_MAX = 1_000  # calls that one client may have under way
TASK_RETRIES_MAX = 5
RETRY_AFTER_S = 1.0
RECREATE_WAIT_S = 0.2
DEFAULT_TIMEOUT_S = 30.0


class VectorOwner:
    """The actor. It opens the store with its first call and not when it is made.

    So "owned by another process" reaches the caller as that error, and the actor lives on to try again; an error while
    it is made would end it for good.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._opening = threading.Lock()
        self._opened: VectorStore | None = None

    def upsert(self, tenant: str, items: Sequence[VectorItem]) -> None:
        self._store().upsert(tenant, items)

    def query(
        self, tenant: str, embedding: npt.NDArray[np.float32], top_k: int, where: Mapping[str, Scalar] | None
    ) -> list[str]:
        return self._store().query(tenant, embedding, top_k, where)

    def delete(self, tenant: str, chunk_ids: Sequence[str]) -> None:
        self._store().delete(tenant, chunk_ids)

    def delete_document(self, tenant: str, document_id: str) -> None:
        self._store().delete_document(tenant, document_id)

    def delete_tenant(self, tenant: str) -> None:
        self._store().delete_tenant(tenant)

    def count(self, tenant: str) -> int:
        return self._store().count(tenant)

    def ready(self) -> bool:
        """Whether the store can be opened; raises what keeps it from that."""
        return self._store() is not None

    def _store(self) -> VectorStore:
        with self._opening:
            if self._opened is None:
                self._opened = VectorStore(self._path)
            return self._opened


class Vectors:
    """The async client of the one `VectorOwner`. Pickles, so that deployments can be given one.

    Args:
        path: The store's directory, as an absolute path on the node where the owner runs.
        host_resource: The custom Ray resource of the nodes that hold the data; `None` where any node does.
        timeout_s: The longest that a call may take, waiting for the owner to start included.
    """

    def __init__(self, *, path: str, host_resource: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._path = path
        self._host_resource = host_resource
        self._timeout_s = timeout_s
        self._owner: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _vectors, (self._path, self._host_resource, self._timeout_s)

    async def upsert(self, tenant: str, items: Sequence[VectorItem]) -> None:
        await self._call("upsert", tenant, items)

    async def query(
        self,
        tenant: str,
        embedding: npt.NDArray[np.float32],
        top_k: int,
        where: Mapping[str, Scalar] | None = None,
    ) -> list[str]:
        found: list[str] = await self._call("query", tenant, embedding, top_k, where)
        return found

    async def delete(self, tenant: str, chunk_ids: Sequence[str]) -> None:
        await self._call("delete", tenant, chunk_ids)

    async def delete_document(self, tenant: str, document_id: str) -> None:
        await self._call("delete_document", tenant, document_id)

    async def delete_tenant(self, tenant: str) -> None:
        await self._call("delete_tenant", tenant)

    async def count(self, tenant: str) -> int:
        return int(await self._call("count", tenant))

    async def ready(self) -> bool:
        return bool(await self._call("ready"))

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        return await getattr(await self._actor(), method).remote(*arguments)
                    except ActorUnavailableError:
                        await asyncio.sleep(RECREATE_WAIT_S)
                    except ActorDiedError:
                        # Ended for good: someone killed it, restarts and all. The next round makes another.
                        self._owner = None
                        await asyncio.sleep(RECREATE_WAIT_S)
        except TimeoutError:
            raise VectorsUnavailable(f"no answer within {self._timeout_s:g} s", RETRY_AFTER_S) from None
        except PendingCallsLimitExceeded:
            raise VectorsUnavailable(f"{PENDING_MAX} calls are waiting", RETRY_AFTER_S) from None
        except RayActorError as error:
            self._owner = None
            raise VectorsUnavailable(type(error).__name__, RETRY_AFTER_S) from None

    async def _actor(self) -> Any:
        if self._owner is None:
            # Asks Ray's control service and blocks meanwhile; off the event loop, which others share.
            self._owner = await asyncio.to_thread(_get_or_make_owner, self._path, self._host_resource)
        return self._owner


def _vectors(path: str, host_resource: str | None, timeout_s: float) -> Vectors:
    return Vectors(path=path, host_resource=host_resource, timeout_s=timeout_s)


def _get_or_make_owner(path: str, host_resource: str | None) -> Any:
    return (
        ray.remote(VectorOwner)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={} if host_resource is None else {host_resource: 0.001},
            max_concurrency=CONCURRENCY_MAX,
            max_restarts=-1,
            max_task_retries=TASK_RETRIES_MAX,
            max_pending_calls=PENDING_MAX,
        )
        .remote(path)
    )
