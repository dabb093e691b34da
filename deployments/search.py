"""Which passages of a tenant's documents answer a query?

Words (FTS5) and meaning (vectors) are asked side by side, and their rankings fused. A chunk counts only if the tenant's
`DocumentIndex` has it still, whatever the vectors say. Results are kept for a while in a `KeyValue` object, and used
again only for the very same query while the documents are the same. The tenant is the caller's; nothing in a query can
widen it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from actors import DocumentIndex, KeyValue, Objects
from actors.document_index import Passage, Scalar
from actors.key_value import VALUE_BYTES_MAX
from configs.tenant import RetrievalConfig
from deployments.documents import INDEX_NAME, Found
from deployments.ranking import fuse
from deployments.vector_store import TOP_K_MAX
from deployments.vectors import Vectors

CACHE_NAME = "search-cache"
CACHED_RESULTS_MAX = 1000
REQUESTS_AT_ONCE_MAX = 200


class Search:
    """Hybrid search over each tenant's documents."""

    def __init__(
        self,
        *,
        connect: Callable[[], Objects],
        retrieval: Mapping[str, RetrievalConfig],
        embedding: DeploymentHandle,
        vectors: Vectors,
    ) -> None:
        objects = connect()
        self._documents = objects.namespace(DocumentIndex)
        self._caches = objects.namespace(KeyValue)
        self._retrieval = retrieval
        self._embedding = embedding
        self._vectors = vectors

    async def find(
        self, tenant: str, query: str, *, top_k: int | None = None, where: Mapping[str, Scalar] | None = None
    ) -> Found:
        settings = self._retrieval[tenant]
        top_k = top_k or settings.top_k
        documents = self._documents.get(tenant, INDEX_NAME)
        cache = self._caches.get(tenant, CACHE_NAME)
        key = _cache_key(query, top_k, where)
        if settings.cache_ttl_s > 0:
            revision, kept = await asyncio.gather(documents.revision(), cache.get(key))
            if kept is not None and kept["value"]["revision"] == revision:
                return Found(kept["value"]["passages"], cached=True)
        else:
            revision = await documents.revision()
        if revision == 0:
            return Found([], cached=False)
        candidates = min(max(settings.candidates, top_k), TOP_K_MAX)
        rankings = await asyncio.gather(
            self._nearest(tenant, query, candidates, where), documents.match(query, limit=candidates, where=where)
        )
        passages: list[Passage] = await documents.passages(fuse(rankings))
        passages = passages[:top_k]
        if settings.cache_ttl_s > 0:
            await self._keep(cache, key, revision, passages, settings.cache_ttl_s)
        return Found(passages, cached=False)

    async def ready(self) -> bool:
        """Raises what keeps the vectors from being searched."""
        return await self._vectors.ready()

    async def _nearest(self, tenant: str, query: str, limit: int, where: Mapping[str, Scalar] | None) -> Sequence[str]:
        (vector,) = await self._embedding.embed.remote([query])
        return await self._vectors.query(tenant, vector, limit, where)

    async def _keep(self, cache: Any, key: str, revision: int, passages: list[Passage], ttl_s: float) -> None:
        value = {"revision": revision, "passages": passages}
        if len(json.dumps(value)) <= VALUE_BYTES_MAX:
            await cache.put(key, value, ttl_s=ttl_s, keep_newest=CACHED_RESULTS_MAX)


def _cache_key(query: str, top_k: int, where: Mapping[str, Scalar] | None) -> str:
    asked = json.dumps([query, top_k, sorted((where or {}).items())])
    return hashlib.sha256(asked.encode()).hexdigest()


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
SearchDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=REQUESTS_AT_ONCE_MAX,
    max_queued_requests=REQUESTS_AT_ONCE_MAX,
    ray_actor_options={"num_cpus": 0.1},
)(Search)
