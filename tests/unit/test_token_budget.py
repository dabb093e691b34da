"""Is the arithmetic of budgets as its module says?"""

from __future__ import annotations

import datetime
from typing import Literal

import pytest

from actors.token_budget import INEXACT_SHARE, Budget, Ruling, Tokens, judge, window_of

OF_100 = Budget("daily", None, "day", None, 100)
BOTH = Budget("both", None, "day", 1_000, 100)


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    ("asked", "used", "promised", "ruling"),
    [
        (40, 0, 0, Ruling.GRANTED),
        (40, 0, 40, Ruling.GRANTED),
        (40, 25, 40, Ruling.PROMISED),
        (40, 65, 0, Ruling.SPENT),
        (120, 0, 0, Ruling.NEVER),
        (100, 0, 0, Ruling.GRANTED),
        (1, 100, 0, Ruling.SPENT),
        (1, 120, 0, Ruling.SPENT),
        (0, 100, 0, Ruling.GRANTED),
    ],
)
def test_the_example_of_the_module_holds(asked: int, used: int, promised: int, ruling: Ruling) -> None:
    found = judge(OF_100, used=Tokens(0, used), promised=Tokens(0, promised), asked=Tokens(0, asked), is_exact=True)
    assert found is ruling


@pytest.mark.parametrize(
    ("asked", "used", "promised", "ruling"),
    [
        (1_000 // INEXACT_SHARE, 0, 0, Ruling.GRANTED),
        (1_000 // INEXACT_SHARE + 1, 0, 0, Ruling.INEXACT),
        # It may come to less than the whole budget, once it is counted.
        (10_000, 0, 0, Ruling.INEXACT),
        (10_000, 999, 0, Ruling.INEXACT),
        (1, 990, 0, Ruling.INEXACT),
        # No prompt is that short.
        (10_000, 1_000, 0, Ruling.SPENT),
        (10_000, 500, 500, Ruling.PROMISED),
    ],
)
def test_a_prompt_that_was_not_counted_is_let_through_where_there_is_plenty(
    asked: int, used: int, promised: int, ruling: Ruling
) -> None:
    found = judge(BOTH, used=Tokens(used), promised=Tokens(promised), asked=Tokens(asked, 1), is_exact=False)
    assert found is ruling


def test_the_tokens_of_the_answer_are_always_exact_and_the_worse_of_both_counts() -> None:
    nothing = Tokens()
    assert judge(BOTH, used=nothing, promised=nothing, asked=Tokens(900, 101), is_exact=False) is Ruling.NEVER
    assert judge(BOTH, used=Tokens(0, 60), promised=nothing, asked=Tokens(900, 50), is_exact=False) is Ruling.SPENT
    assert judge(BOTH, used=nothing, promised=nothing, asked=Tokens(1_000, 100), is_exact=True) is Ruling.GRANTED


@pytest.mark.parametrize(
    ("per", "now", "first", "next_first"),
    [
        ("day", "2026-03-01T00:00:00", "2026-03-01", "2026-03-02"),
        ("day", "2026-02-28T23:59:59.9", "2026-02-28", "2026-03-01"),
        ("day", "2028-02-28T12:00:00", "2028-02-28", "2028-02-29"),
        ("month", "2026-02-01T00:00:00", "2026-02-01", "2026-03-01"),
        ("month", "2026-01-31T23:59:59", "2026-01-01", "2026-02-01"),
        ("month", "2026-12-31T12:00:00", "2026-12-01", "2027-01-01"),
    ],
)
def test_windows_are_those_of_the_calendar(per: Literal["day", "month"], now: str, first: str, next_first: str) -> None:
    window = window_of(per, at(now))
    assert (window.first, window.next_first, window.ends_at) == (first, next_first, at(next_first))
    assert window_of(per, window.ends_at).first == next_first


def test_a_budget_is_for_its_model_or_for_all() -> None:
    assert OF_100.is_for("a")
    assert OF_100._replace(model="a").is_for("a")
    assert not OF_100._replace(model="a").is_for("b")
