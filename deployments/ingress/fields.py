"""What may stand in a field of a request?

Types that several routes use, each with its limit. Strings hold what UTF-8 can, which excludes the lone surrogates that
JSON can spell; numbers are finite.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from actors.turn import OnConflict
from deployments.chat_request import ModelOptions

#: As in OpenAI's conversations: 16 pairs, keys of 64 and values of 512 characters.
METADATA_PAIRS_MAX = 16
METADATA_KEY_CHARS_MAX = 64
METADATA_VALUE_CHARS_MAX = 512
TITLE_CHARS_MAX = 300
TTL_S_MAX = 10 * 366 * 86_400
INTEGER_MAX = 2**53
#: Every encoder on the way, and that of the answer, nests deeper than this.
JSON_DEPTH_MAX = 100


class Body(BaseModel):
    """A request's JSON. What is not known is refused: a misspelt field would be ignored otherwise."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def in_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    return text


def _is_json(value: Any) -> Any:
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        # Level by level: what nests too deep for an encoder does so for a recursive function as well.
        containers = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [inner for container in containers for inner in container]
        if not level:
            break
    else:
        raise ValueError(f"must not be nested deeper than {JSON_DEPTH_MAX} levels")
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    except ValueError:
        raise ValueError("must be JSON, without NaN or Infinity") from None
    return value


def _is_scalar(value: Any) -> Any:
    """Not a union of types, which would put its members' names into the name of the field that is at fault."""
    match value:
        case bool():
            return value
        case str():
            if len(value) > METADATA_VALUE_CHARS_MAX:
                raise ValueError(f"has more than {METADATA_VALUE_CHARS_MAX} characters")
            return in_utf8(value)
        case int():
            if abs(value) > INTEGER_MAX:
                raise ValueError(f"must be from -{INTEGER_MAX} to {INTEGER_MAX}")
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError("must not be NaN or infinite")
            return value
    raise ValueError("must be a string, a number, true or false")


Text = Annotated[str, AfterValidator(in_utf8)]
Title = Annotated[Text, Field(max_length=TITLE_CHARS_MAX)]
UserId = Annotated[Text, Field(min_length=1, max_length=256)]
Json = Annotated[Any, AfterValidator(_is_json)]
TtlSeconds = Annotated[float, Field(gt=0, le=TTL_S_MAX)]
MetadataKey = Annotated[Text, Field(min_length=1, max_length=METADATA_KEY_CHARS_MAX)]
SessionMetadataField = Annotated[
    dict[MetadataKey, Annotated[Text, Field(max_length=METADATA_VALUE_CHARS_MAX)]], Field(max_length=METADATA_PAIRS_MAX)
]
#: A document's metadata can be searched by, so its values keep their types.
_ScalarSchema = (
    Annotated[str, Field(max_length=METADATA_VALUE_CHARS_MAX)]
    | bool
    | Annotated[int, Field(ge=-INTEGER_MAX, le=INTEGER_MAX)]
    | float
)
Scalar = Annotated[str | bool | int | float, PlainValidator(_is_scalar, json_schema_input_type=_ScalarSchema)]
DocumentMetadata = Annotated[dict[MetadataKey, Scalar], Field(max_length=METADATA_PAIRS_MAX)]
DocumentId = Annotated[Text, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
TopP = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=1, le=50)]


class AnswerOptions(Body):
    """How a question is to be answered, however it is put."""

    user_id: UserId | None = Field(default=None, description="of the session that is made where none is named")
    on_conflict: OnConflict | None = Field(
        default=None, description="what becomes of an answer that is under way; the tenant's setting if it is left out"
    )
    retrieve: bool = Field(default=True, description="look for passages in the tenant's documents first")
    top_k: TopK | None = None
    max_tokens: Annotated[int, Field(ge=1, le=131_072)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None

    @property
    def options(self) -> ModelOptions:
        return ModelOptions(top_p=self.top_p)


Limit = Annotated[int, Query(ge=1, le=100, description="items in the page")]
HistoryLimit = Annotated[int, Query(ge=1, le=1000, description="messages in the page")]
