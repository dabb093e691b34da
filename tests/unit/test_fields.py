"""Do the fields of requests take what they should, and refuse what an encoder further on could not take?"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from deployments.ingress.fields import (
    INTEGER_MAX,
    JSON_DEPTH_MAX,
    METADATA_PAIRS_MAX,
    Body,
    DocumentId,
    DocumentMetadata,
    Json,
    SessionMetadataField,
    Text,
    Title,
    TopK,
    TtlSeconds,
    UserId,
)


def _nested(depth: int, *, by_key: bool = False) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if by_key else [value]
    return value


def _takes(field: Any, value: Any) -> Any:
    return TypeAdapter(field).validate_python(value)


def _refuses(field: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(field).validate_python(value)
    return str(refused.value.errors()[0]["msg"])


@pytest.mark.parametrize("text", ["", "a", "\0", "naïve 🐟", "\ue000", "\U0010ffff", "\u202e"])
def test_text_is_anything_that_utf8_can_hold(text: str) -> None:
    assert _takes(Text, text) == text


@pytest.mark.parametrize("text", ["\ud83d", "a\udc1fb", "\udc1f\ud83d"])
@pytest.mark.parametrize("field", [Text, Title, UserId, DocumentId, Json])
def test_half_of_a_surrogate_pair_is_no_text(field: Any, text: str) -> None:
    assert "surrogate" in _refuses(field, text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (Title, "x" * 301),
        (UserId, ""),
        (UserId, "x" * 257),
        (DocumentId, ""),
        (DocumentId, "x" * 257),
        (DocumentId, "a\nb"),
        (DocumentId, "a\n"),
        (DocumentId, "\0"),
        (DocumentId, "\x7f"),
        (TtlSeconds, 0),
        (TtlSeconds, -1),
        (TtlSeconds, float("nan")),
        (TtlSeconds, float("inf")),
        (TtlSeconds, 1e300),
        (TtlSeconds, 10**400),
        (TopK, 0),
        (TopK, 51),
        (TopK, 10**400),
        (TopK, 1.5),
        (SessionMetadataField, {"": "a"}),
        (SessionMetadataField, {"k" * 65: "a"}),
        (SessionMetadataField, {"a": "v" * 513}),
        (SessionMetadataField, {"a": 1}),
        (SessionMetadataField, {str(number): "" for number in range(METADATA_PAIRS_MAX + 1)}),
        (DocumentMetadata, {str(number): 1 for number in range(METADATA_PAIRS_MAX + 1)}),
        (DocumentMetadata, {"a": None}),
        (DocumentMetadata, {"a": []}),
        (DocumentMetadata, {"a": {"b": 1}}),
        (DocumentMetadata, {"a": "v" * 513}),
        (DocumentMetadata, {"a": "\ud83d"}),
        (DocumentMetadata, {"\ud83d": 1}),
        (DocumentMetadata, {"a": INTEGER_MAX + 1}),
        (DocumentMetadata, {"a": -(10**400)}),
        (DocumentMetadata, {"a": float("nan")}),
        (DocumentMetadata, {"a": float("-inf")}),
    ],
)
def test_what_is_beyond_a_limit_is_refused(field: Any, value: Any) -> None:
    _refuses(field, value)


def test_a_documents_metadata_keeps_the_types_of_its_values() -> None:
    metadata = {"text": "1", "yes": True, "whole": 1, "real": 1.0, "large": INTEGER_MAX}
    taken = _takes(DocumentMetadata, metadata)
    assert taken == metadata
    assert [type(value) for value in taken.values()] == [str, bool, int, float, int]


def test_an_unknown_or_misspelt_field_is_refused() -> None:
    class Example(Body):
        title: Text | None = None

    with pytest.raises(ValidationError):
        Example.model_validate({"titel": "a"})


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, 10**300, "", "🐟", [], {}, {"a": [1, {"b": None}]}, _nested(JSON_DEPTH_MAX - 1)]
)
def test_any_json_is_a_value_and_can_be_answered_again(value: Any) -> None:
    assert _takes(Json, value) == value
    assert json.loads(to_json(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [1, {"a": float("inf")}],
        {"\ud83d": 1},
        ["\ud83d"],
        _nested(JSON_DEPTH_MAX),
        _nested(JSON_DEPTH_MAX, by_key=True),
        _nested(900),
        _nested(900, by_key=True),
    ],
)
def test_what_json_cannot_hold_or_encoders_cannot_nest_is_no_value(value: Any) -> None:
    _refuses(Json, value)


def test_a_value_of_the_deepest_nesting_passes_through_every_encoder() -> None:
    for by_key in (False, True):
        value = _takes(Json, _nested(JSON_DEPTH_MAX - 1, by_key=by_key))
        assert json.loads(to_json({"value": value})) == json.loads(json.dumps({"value": value}))
