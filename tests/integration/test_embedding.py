"""Do texts of like meaning get like vectors, without any network, and are many callers served at once?"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import serve

from deployments.embedding import EmbeddingDeployment
from deployments.encoder import MODEL_NAME, TEXTS_MAX, Encoder, packaged_model
from tests.benchmarks import embedding

WATER = "How do I water the plants on my balcony?"
PLANTS = "Caring for flowers in pots: how often to give them water."
CARS = "The engine of this car needs new spark plugs."


def _no_network(*_: object) -> None:
    raise AssertionError("the encoder tried to reach the network")


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        patch.setattr(socket, "getaddrinfo", _no_network)
        yield Encoder(folder=packaged_model(), name=MODEL_NAME, threads=1)


@pytest.fixture(scope="module")
def by_arithmetic() -> dict[bool, Encoder]:
    """In bfloat16, and not: both on every processor, only that most are slow with the one."""
    return {
        in_bfloat16: Encoder(folder=packaged_model(), name=MODEL_NAME, threads=1, in_bfloat16=in_bfloat16)
        for in_bfloat16 in (False, True)
    }


def test_like_texts_are_nearer_than_unlike_ones(encoder: Encoder) -> None:
    water, plants, cars = encoder.encode([WATER, PLANTS, CARS])

    assert water @ plants > 0.5
    assert water @ cars < 0.2


def test_vectors_are_float32_of_unit_length(encoder: Encoder) -> None:
    vectors = encoder.encode([WATER, "", "x" * 1_000_000])

    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_no_text_makes_the_others_in_its_pass_fail(encoder: Encoder) -> None:
    vectors = encoder.encode([WATER, "\ud800 lone surrogate", "\x00", "\U0001f980 \u202e"])

    assert np.isfinite(vectors).all()
    assert vectors[0] @ encoder.encode([WATER])[0] == pytest.approx(1, abs=1e-4)


def test_the_model_id_names_the_model_and_its_very_bytes(encoder: Encoder) -> None:
    name, _, revision = encoder.model_id.partition("@")
    content_hash, _, arithmetic = revision.partition("-")

    assert name == MODEL_NAME
    assert len(content_hash) == 12
    assert int(content_hash, 16) > 0
    assert arithmetic in {"", "bfloat16"}


def test_the_model_id_tells_in_what_the_model_computes(by_arithmetic: dict[bool, Encoder]) -> None:
    assert by_arithmetic[True].model_id == f"{by_arithmetic[False].model_id}-bfloat16"


def test_what_is_faster_on_this_processor_is_taken_unasked(
    encoder: Encoder, by_arithmetic: dict[bool, Encoder]
) -> None:
    has_tiles = torch.cpu.get_capabilities().get("amx_bf16", False)

    assert encoder.model_id == by_arithmetic[bool(has_tiles)].model_id


def test_vectors_computed_in_bfloat16_are_those_of_float32(by_arithmetic: dict[bool, Encoder]) -> None:
    wide, narrow = (by_arithmetic[in_bfloat16].encode(embedding.texts(40)) for in_bfloat16 in (False, True))

    assert narrow.dtype == np.float32
    assert np.linalg.norm(narrow, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    assert (wide * narrow).sum(axis=1).min() > 0.999
    assert np.abs(wide @ wide.T - narrow @ narrow.T).max() < 0.01


@pytest.fixture(scope="module")
def handle() -> Iterator[Any]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    yield serve.run(EmbeddingDeployment.bind(), name="embedding", route_prefix=None)
    serve.shutdown()
    ray.shutdown()


async def test_a_list_comes_back_in_its_own_order(handle: Any, encoder: Encoder) -> None:
    texts = [f"{'very ' * (37 * number % 60)}long sentence number {number}" for number in range(30)]

    vectors = await handle.embed.remote(texts)

    assert vectors.shape == (30, 384)
    for text, vector in zip(texts, vectors, strict=True):
        assert encoder.encode([text])[0] @ vector == pytest.approx(1, abs=1e-3)


async def test_queries_that_arrive_together_each_get_their_own_vector(handle: Any, encoder: Encoder) -> None:
    texts = [f"question number {number}" for number in range(40)]

    found = await asyncio.gather(*(handle.embed.remote([text]) for text in texts))

    for text, vectors in zip(texts, found, strict=True):
        assert vectors.shape == (1, 384)
        assert encoder.encode([text])[0] @ vectors[0] == pytest.approx(1, abs=1e-3)


async def test_a_query_asked_again_has_the_same_vector(handle: Any) -> None:
    first = await handle.embed.remote([WATER])

    assert (await handle.embed.remote([WATER]) == first).all()


async def test_a_query_does_not_wait_for_a_long_list(handle: Any) -> None:
    documents = asyncio.ensure_future(_embed(handle, [f"{'word ' * 200}{number}" for number in range(48)]))
    query = asyncio.ensure_future(_embed(handle, ["a question asked meanwhile"]))

    done, _ = await asyncio.wait({documents, query}, return_when=asyncio.FIRST_COMPLETED)

    assert done == {query}
    assert (await documents).shape == (48, 384)


async def test_too_many_texts_and_none_are_refused(handle: Any) -> None:
    for texts in ([], ["x"] * (TEXTS_MAX + 1)):
        with pytest.raises(ValueError, match=f"between 1 and {TEXTS_MAX}"):
            await handle.embed.remote(texts)


async def test_the_deployment_says_which_model_it_is(handle: Any, encoder: Encoder) -> None:
    assert await handle.model_id.remote() == encoder.model_id


async def _embed(handle: Any, texts: list[str]) -> Any:
    return await handle.embed.remote(texts)
