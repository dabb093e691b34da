"""Are rankings fused as the paper does it?"""

from __future__ import annotations

import pytest

from deployments.ranking import RANK_OFFSET, fuse


def test_the_constant_is_that_of_the_paper() -> None:
    assert RANK_OFFSET == 60


def test_results_are_ordered_by_the_sum_of_their_reciprocal_ranks() -> None:
    # a: 1/61 + 1/63 = 0.03227;  b: 1/62 + 1/61 = 0.03252;  c: 1/63 + 1/64 = 0.03150;  d: 1/62 = 0.01613
    assert fuse([["a", "b", "c"], ["b", "d", "a", "c"]]) == ["b", "a", "c", "d"]


def test_two_middling_places_beat_one_first() -> None:
    # x: 1/70 + 1/70 = 0.02857;  first: 1/61 = 0.01639
    words = ["first", *[f"w{number}" for number in range(8)], "x"]
    meaning = [*[f"m{number}" for number in range(9)], "x"]
    assert fuse([words, meaning])[0] == "x"


@pytest.mark.parametrize("rankings", [[], [[]], [[], []]])
def test_nothing_fused_is_nothing(rankings: list[list[str]]) -> None:
    assert fuse(rankings) == []


def test_one_ranking_is_left_as_it_is() -> None:
    assert fuse([["c", "a", "b"]]) == ["c", "a", "b"]
    assert fuse([[], ["c", "a", "b"]]) == ["c", "a", "b"]


def test_equal_results_stay_in_the_order_of_the_first_ranking() -> None:
    assert fuse([["a", "b"], ["b", "a"]]) == ["a", "b"]
    assert fuse([["b", "a"], ["a", "b"]]) == ["b", "a"]
    assert fuse([["a"], ["b"], ["c"]]) == ["a", "b", "c"]


def test_every_result_is_there_once() -> None:
    rankings = [[f"d{number}" for number in range(100)], [f"d{number}" for number in range(150, 50, -1)]]
    fused = fuse(rankings)
    assert sorted(fused) == sorted({result for ranking in rankings for result in ranking})
