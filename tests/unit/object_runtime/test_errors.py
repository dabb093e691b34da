"""Do the runtime's errors arrive as they were raised?"""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from actors.runtime import DurableError


def subclasses_of(root: type[DurableError]) -> list[type[DurableError]]:
    return [root, *[deeper for child in root.__subclasses__() for deeper in subclasses_of(child)]]


RUNTIME_ERRORS = [
    error for error in dict.fromkeys(subclasses_of(DurableError)) if error.__module__.startswith("actors.")
]
FIELDS: dict[str, Any] = {"retry_after_s": 2.5, "since": 1_000_000_000.0, "value": "x" * 200}


@pytest.mark.parametrize("error_class", RUNTIME_ERRORS, ids=lambda error_class: error_class.__name__)
def test_an_error_crosses_processes_with_all_its_fields(error_class: type[DurableError]) -> None:
    code = error_class.__init__.__code__ if error_class.__init__ is not Exception.__init__ else None
    names = list(code.co_varnames[1 : code.co_argcount]) if code else []
    error = error_class(*[FIELDS.get(name, f"some {name}") for name in names])
    there = pickle.loads(pickle.dumps(error))
    back = pickle.loads(pickle.dumps(there))
    assert type(back) is error_class
    assert vars(back) == vars(error)
    assert str(back) == str(error)
    assert (back.retryable, back.retry_after_s) == (error.retryable, error.retry_after_s)
    for name in names:
        assert hasattr(back, name)
