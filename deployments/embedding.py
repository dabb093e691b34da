"""How do many callers share one embedding model?

Promise: single texts (queries) that arrive together are encoded together, and wait for at most one short pass of a long
list (documents), however much is being ingested. Encoding runs on one thread of its own, so that the replica keeps
answering meanwhile.

A list may hold `TEXTS_MAX` texts. Only the model's window of each text counts (see `Encoder`).

Vectors travel as one float32 array: for 256 texts it is pickled as a single buffer, which Ray hands over without
copying, where lists of Python floats would take about a hundred times as long.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve

from deployments.encoder import MODEL_NAME, TEXTS_MAX, Encoder, Vectors32, packaged_model

# One pass of a long list. Small passes are no slower on a CPU (less padding, better use of its caches), and a query has
# to wait for one.
TEXTS_PER_PASS = 8
QUERIES_PER_PASS_MAX = 32
QUERY_WAIT_S = 0.005
CACHED_QUERIES_MAX = 1024  # 1.5 kB each


class Embedding:
    """Vectors for texts, from the packaged model unless another folder is given."""

    def __init__(self, *, folder: Path | None = None, name: str = MODEL_NAME, threads: int = 1) -> None:
        self._encoder = Encoder(folder=folder or packaged_model(), name=name, threads=threads)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._one_list_at_a_time = asyncio.Lock()
        self._queries: OrderedDict[bytes, Vectors32] = OrderedDict()

    async def embed(self, texts: list[str]) -> Vectors32:
        """A row of unit length for each text, in their order."""
        if not 1 <= len(texts) <= TEXTS_MAX:
            raise ValueError(f"between 1 and {TEXTS_MAX} texts, not {len(texts)}")
        if len(texts) == 1:
            return (await self._query(texts[0]))[np.newaxis]
        shortest_first = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors: list[Vectors32] = []
        for start in range(0, len(texts), TEXTS_PER_PASS):
            some = [texts[index] for index in shortest_first[start : start + TEXTS_PER_PASS]]
            # Lists take turns pass by pass, so that no more than one of their passes is ever before a query's.
            async with self._one_list_at_a_time:
                vectors.append(await self._encode(some))
        ordered = np.empty((len(texts), vectors[0].shape[1]), dtype=np.float32)
        ordered[shortest_first] = np.concatenate(vectors)
        return ordered

    async def tokens(self, texts: list[str]) -> int:
        """How many tokens the model reads of the texts, together."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.tokens, texts)

    def model_id(self) -> str:
        """The model's name and the hash of its files; part of what makes a stored vector valid."""
        return self._encoder.model_id

    async def _query(self, text: str) -> Vectors32:
        # By hash: a text may be long, and what clients asked should not be kept.
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        vector = self._queries.get(key)
        if vector is None:
            vector = await self._encode_queries(text)
            self._queries[key] = vector
            if len(self._queries) > CACHED_QUERIES_MAX:
                self._queries.popitem(last=False)
        self._queries.move_to_end(key)
        return vector

    @serve.batch(max_batch_size=QUERIES_PER_PASS_MAX, batch_wait_timeout_s=QUERY_WAIT_S)
    async def _encode_queries(self, texts: list[str]) -> list[Vectors32]:
        # Copies, or each cached vector would keep its whole batch in memory.
        return [row.copy() for row in await self._encode(texts)]

    async def _encode(self, texts: list[str]) -> Vectors32:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.encode, texts)


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
EmbeddingDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=256,
    max_queued_requests=256,
    ray_actor_options={"num_cpus": 0.5},
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=10,
)(Embedding)
