"""Is the count of tokens that of the model that is asked, and is no text counted twice?"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.tenant import ModelConfig
from deployments.encoder import packaged_model
from deployments.token_count import (
    CountedByModel,
    CountedByTokenizer,
    Estimated,
    Remembered,
    check,
    counters_of,
    estimate,
    size_bytes_of,
)
from tests.unit.handles import EchoModel, tenant

#: A tokenizer.json that cuts its texts and fills them up, as one made for embedding does.
TOKENIZER = packaged_model() / "tokenizer.json"
SERVER = ModelConfig(base_url="http://127.0.0.1:1/v1", model="m")


def with_tokenizer(path: Path) -> ModelConfig:
    return ModelConfig(base_url="http://127.0.0.1:1/v1", model="m", tokenizer=path)


class Noting:
    """Counts characters, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def count(self, texts: Sequence[str]) -> list[int]:
        self.asked.append(list(texts))
        return [len(text) for text in texts]


async def test_a_tokenizer_file_counts_its_own_tokens_neither_cut_nor_filled_up() -> None:
    counter = CountedByTokenizer(TOKENIZER)
    assert await counter.count(["hello world", "", "unbelievably", "word " * 2_000]) == [2, 0, 5, 2_000]


async def test_any_text_can_be_counted_and_has_no_more_tokens_than_bytes() -> None:
    texts = ["a\ud800b", "😀" * 9, "日本語", "x" * 500, "\x00", "\u0301" * 9]
    for counts in (await CountedByTokenizer(TOKENIZER).count(texts), await Estimated().count(texts)):
        assert all(count <= size_bytes_of(text) + 1 for count, text in zip(counts, texts, strict=True))


def test_an_estimate_takes_scripts_of_many_bytes_for_many_tokens() -> None:
    assert estimate("word" * 30) == 41
    assert estimate("語" * 40) == 41
    assert estimate("") == 1


async def test_a_text_is_counted_once_however_often_it_is_asked_for() -> None:
    counter = Noting()
    remembered = Remembered(counter)
    assert await remembered.count(["a", "bb", "a"]) == [1, 2, 1]
    assert await remembered.count(["bb", "ccc"]) == [2, 3]
    assert await remembered.count(["a", "ccc"]) == [1, 3]
    assert counter.asked == [["a", "bb"], ["ccc"]]


async def test_only_so_many_counts_are_remembered_the_latest_used() -> None:
    counter = Noting()
    remembered = Remembered(counter, counts_max=2)
    await remembered.count(["a", "bb"])
    await remembered.count(["a", "ccc"])
    assert await remembered.count(["a", "ccc"]) == [1, 3]
    assert await remembered.count(["bb"]) == [2]
    assert counter.asked == [["a", "bb"], ["ccc"], ["bb"]]
    assert await remembered.count(["d", "ee", "fff"]) == [1, 2, 3]


async def test_each_tenant_has_the_counter_of_its_model() -> None:
    counters = counters_of(
        {
            "own": tenant("own"),
            "also": tenant("also"),
            "elsewhere": tenant("elsewhere", model=SERVER),
            "known": tenant("known", model=with_tokenizer(TOKENIZER)),
            "same": tenant("same", model=with_tokenizer(TOKENIZER)),
        },
        EchoModel(),
    )
    assert counters["own"] is counters["also"]
    assert isinstance(counters["elsewhere"], Estimated)
    assert counters["known"] is counters["same"] is not counters["own"]
    assert await counters["known"].count(["hello world"]) == [2]
    assert await counters["own"].count(["hello world"]) == [estimate("hello world")]
    assert await CountedByModel(EchoModel()).count(["x"]) == [1]


def test_a_file_that_is_no_tokenizer_is_refused_by_file_and_field(tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    shutil.copy(TOKENIZER, tmp_path / "good.json")
    good = tenant("good", model=with_tokenizer(tmp_path / "good.json"))
    check({"good": good, "none": tenant("none")}, tmp_path)
    with pytest.raises(ConfigError) as refused:
        check({"good": good, "bad": tenant("bad", model=with_tokenizer(broken))}, tmp_path)
    assert refused.value.file == str(tmp_path / "bad.yaml")
    assert refused.value.field == "model.tokenizer"
