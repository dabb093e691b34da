"""/v1/embeddings: vectors for texts, from the model that documents are searched with."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import Field, PlainValidator, WithJsonSchema

from deployments.encoder import MODEL_NAME, TEXTS_MAX, Vectors32
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.fields import Body, in_utf8
from deployments.ingress.openai import shapes
from deployments.ingress.openai.errors import Refused
from deployments.ingress.openai.models import required
from deployments.ingress.openai.parameters import Ignored, ModelName
from deployments.ingress.replies import reply
from deployments.ingress.services import Services, services_of

router = APIRouter(route_class=guarded_by("search", "embeddings"), tags=["OpenAI: embeddings"])

#: As many as OpenAI takes.
INPUTS_MAX = 2048
_INPUT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "maxItems": INPUTS_MAX, "items": {"type": "string", "minLength": 1}},
    ],
    "description": "texts, not token numbers; of each, the model reads no more than its window",
}


def _texts_of(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= INPUTS_MAX:
        raise ValueError(f"must be a string, or a list of 1 to {INPUTS_MAX} strings")
    if any(isinstance(text, int | list) for text in texts):
        raise ValueError("holds numbers of tokens, which are those of another model: send the text")
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError("must hold strings that are not empty")
    return [in_utf8(text) for text in texts]


class NewEmbeddings(Body):
    input: Annotated[list[str], PlainValidator(_texts_of), WithJsonSchema(_INPUT)]
    model: ModelName
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="must be what the model has"
    )
    user: Ignored = None


@router.post("/v1/embeddings", response_model=shapes.EmbeddingList)
async def create(request: Request, caller: Caller, body: NewEmbeddings) -> Response:
    services = services_of(request)
    model = required(body.model, MODEL_NAME)
    vectors, tokens = await asyncio.gather(_vectors(services, body.input), _tokens(services, body.input))
    if body.dimensions not in (None, vectors.shape[1]):
        raise Refused(f"dimensions: the model has {vectors.shape[1]}, and no others", "dimensions")
    services.usage.note(caller.tenant, model, input_tokens=tokens, output_tokens=0)
    shown = _as_base64 if body.encoding_format == "base64" else _as_floats
    return reply(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": shown(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


async def _vectors(services: Services, texts: list[str]) -> Vectors32:
    # One part after the other: a long list takes turns with what others want.
    parts = [await services.embedding.embed.remote(part) for part in _parts(texts)]
    return np.concatenate(parts)


async def _tokens(services: Services, texts: list[str]) -> int:
    return sum([await services.embedding.tokens.remote(part) for part in _parts(texts)])


def _parts(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + TEXTS_MAX] for start in range(0, len(texts), TEXTS_MAX)]


def _as_floats(vector: Vectors32) -> list[float]:
    floats: list[float] = vector.tolist()
    return floats


def _as_base64(vector: Vectors32) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
