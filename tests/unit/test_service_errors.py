"""Do the deployments' errors reach another process as they were raised?"""

from __future__ import annotations

import pickle

import pytest

from deployments.errors import (
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    ServiceError,
    VectorsError,
    VectorStoreOwned,
    VectorsUnavailable,
)

ERRORS: list[ServiceError] = [
    ModelUnavailable("the server answered 503", 2.5),
    ModelTimeout(30.0),
    ModelRefused("too many tokens", ModelRefused.CONTEXT_LENGTH),
    VectorStoreOwned("/data/vectors", "process 12", 5.0),
    VectorsUnavailable("starting", 1.0),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_pickling(error: ServiceError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
    assert copy.retryable is error.retryable


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_says_whether_and_when_to_retry(error: ServiceError) -> None:
    assert isinstance(error.retryable, bool)
    assert error.retry_after_s is None or error.retry_after_s > 0


def test_a_refusal_is_not_retryable_and_an_unavailable_model_is() -> None:
    assert not ModelRefused("wrong").retryable
    assert ModelUnavailable("gone", 1.0).retryable
    assert ModelTimeout(1.0).retryable


def test_model_and_vector_errors_are_told_apart_by_their_classes() -> None:
    assert issubclass(ModelRefused, ModelError)
    assert not issubclass(VectorsUnavailable, ModelError)
    assert issubclass(VectorStoreOwned, VectorsError)
