"""Are vectors given in both forms, to whoever asks for a model that there is?"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest
from fastapi import FastAPI

from actors import TokenUsage
from actors.token_usage import USAGE_NAME
from deployments.encoder import MODEL_NAME, TEXTS_MAX
from tests.unit.handles import DIMENSIONS
from tests.unit.openai_routes.lab import Lab


async def test_both_forms_hold_the_same_vectors_in_the_order_of_the_texts(client: openai.AsyncOpenAI, lab: Lab) -> None:
    texts = ["one fish", "two fish"]
    expected = await lab.embedder.embed(texts)
    # The package asks for base64 and unpacks it, unless it is told otherwise.
    unpacked = await client.embeddings.create(model=MODEL_NAME, input=texts)
    floats = await client.embeddings.create(model="default", input=texts, encoding_format="float")
    packed = await client.embeddings.create(model="default", input=texts, encoding_format="base64")
    for answer in (unpacked, floats):
        assert [one.index for one in answer.data] == [0, 1]
        assert np.array_equal(np.array([one.embedding for one in answer.data], dtype=np.float32), expected)
    raw: Any = packed.data[1].embedding
    assert np.array_equal(np.frombuffer(base64.b64decode(raw), dtype="<f4"), expected[1])
    assert unpacked.model == MODEL_NAME
    assert (unpacked.usage.prompt_tokens, unpacked.usage.total_tokens) == (4, 4)


async def test_what_was_read_counts_for_the_tenant(client: openai.AsyncOpenAI, lab: Lab) -> None:
    await client.embeddings.create(model=MODEL_NAME, input="three little words")
    await lab.services.usage.told()
    (day,) = await lab.talk.objects.namespace(TokenUsage).get("acme", USAGE_NAME).days("0000", "9999")
    assert (day["model"], day["input_tokens"], day["output_tokens"]) == (MODEL_NAME, 3, 0)


async def test_a_long_list_goes_to_the_model_in_parts(client: openai.AsyncOpenAI, lab: Lab) -> None:
    answer = await client.embeddings.create(model=MODEL_NAME, input=[f"fish {n}" for n in range(TEXTS_MAX + 1)])
    assert len(answer.data) == TEXTS_MAX + 1
    assert lab.embedder.batches == [TEXTS_MAX, 1]


async def test_as_many_dimensions_as_there_are_may_be_asked_for_and_no_others(client: openai.AsyncOpenAI) -> None:
    await client.embeddings.create(model=MODEL_NAME, input="x", dimensions=DIMENSIONS)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model=MODEL_NAME, input="x", dimensions=DIMENSIONS - 1)
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize("texts", ["", [], [""], ["x", ""], [1, 2], [[1, 2]], ["x"] * 2049, None, {"a": 1}])
async def test_what_is_no_text_is_refused(client: openai.AsyncOpenAI, lab: Lab, texts: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model=MODEL_NAME, input=texts)
    assert refused.value.param == "input"
    assert lab.embedder.texts == []


async def test_a_chat_model_makes_no_embeddings(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.embeddings.create(model="embedded", input="x")
    assert missing.value.code == "model_not_found"


async def test_the_tenants_models_are_listed_and_found_by_their_names(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["embedded", MODEL_NAME]
    for asked, found in (("embedded", "embedded"), ("default", "embedded"), (MODEL_NAME, MODEL_NAME)):
        assert (await client.models.retrieve(asked)).id == found
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("org/gpt-6")
    assert missing.value.code == "model_not_found"


async def test_a_key_that_is_not_known_is_told_as_openai_does(app: FastAPI, lab: Lab) -> None:
    async with lab.client(app, "sk-nobody") as stranger:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await stranger.models.list()
        assert (unknown.value.code, unknown.value.type) == ("invalid_api_key", "invalid_request_error")
