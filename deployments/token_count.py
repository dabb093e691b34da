"""How many tokens does a text take in the context of the model that will read it?

Three ways to know: the embedded model counts its own (`CountedByModel`), a `tokenizer.json` counts for a model that
runs elsewhere (`CountedByTokenizer`), and without one the count is estimated from the text's size (`Estimated`), on the
side of too many. `Remembered` keeps what was counted, by digests of the texts.

Counts are of the texts alone: what a chat template puts around a message is added by whoever builds the prompt.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tokenizers import Tokenizer

from configs.errors import ConfigError
from configs.tenant import TenantConfig

if TYPE_CHECKING:
    from deployments.model_client import Models

#: English has about four bytes a token; code, a small vocabulary or scripts of few bytes a character have fewer.
BYTES_PER_TOKEN = 3
#: About 100 bytes each.
COUNTS_REMEMBERED_MAX = 20_000


class TokenCounter(Protocol):
    async def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text."""
        ...


def size_bytes_of(text: str) -> int:
    """At least the tokens of a text: each has a byte or more."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def estimate(text: str) -> int:
    return size_bytes_of(text) // BYTES_PER_TOKEN + 1


class Estimated:
    """For models whose tokens nobody here knows."""

    async def count(self, texts: Sequence[str]) -> list[int]:
        return [estimate(text) for text in texts]


class CountedByModel:
    """For the embedded model, which is asked."""

    def __init__(self, model: Models) -> None:
        self._model = model

    async def count(self, texts: Sequence[str]) -> list[int]:
        return await self._model.count_tokens(texts)


class CountedByTokenizer:
    """For a model whose `tokenizer.json` is a file here."""

    def __init__(self, path: Path) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        # Files are made for training and embedding too, where a text is cut, or filled up, to one length.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    async def count(self, texts: Sequence[str]) -> list[int]:
        return await asyncio.to_thread(self._counted, [text.encode(errors="replace").decode() for text in texts])

    def _counted(self, texts: list[str]) -> list[int]:
        return [len(one.ids) for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


class Remembered:
    """Asks a counter only for texts that were not counted lately."""

    def __init__(self, counter: TokenCounter, *, counts_max: int = COUNTS_REMEMBERED_MAX) -> None:
        self._counter = counter
        self._counts_max = counts_max
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    async def count(self, texts: Sequence[str]) -> list[int]:
        keys = [hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts]
        known: dict[bytes, int] = {}
        unknown: dict[bytes, str] = {}
        for key, text in zip(keys, texts, strict=True):
            if key in self._counts:
                self._counts.move_to_end(key)
                known[key] = self._counts[key]
            else:
                unknown[key] = text
        if unknown:
            known |= zip(unknown, await self._counter.count(list(unknown.values())), strict=True)
            for key in unknown:
                self._counts[key] = known[key]
            while len(self._counts) > self._counts_max:
                self._counts.popitem(last=False)
        return [known[key] for key in keys]


def counters_of(tenants: Mapping[str, TenantConfig], model: Models) -> dict[str, TokenCounter]:
    """A counter for each tenant; tenants of one model share one."""
    shared: dict[Path | None, TokenCounter] = {}
    counters: dict[str, TokenCounter] = {}
    for tenant in tenants.values():
        if tenant.model.base_url is not None and tenant.model.tokenizer is None:
            counters[tenant.tenant] = Estimated()
            continue
        path = tenant.model.tokenizer
        if path not in shared:
            shared[path] = Remembered(CountedByModel(model) if path is None else CountedByTokenizer(path))
        counters[tenant.tenant] = shared[path]
    return counters


def check(tenants: Mapping[str, TenantConfig], tenants_dir: Path) -> None:
    """Raises what would keep a tenant's tokens from being counted.

    Raises:
        ConfigError: a `model.tokenizer` is no tokenizer.
    """
    checked: set[Path] = set()
    for tenant in tenants.values():
        path = tenant.model.tokenizer
        if path is None or path in checked:
            continue
        checked.add(path)
        try:
            CountedByTokenizer(path)
        except Exception as error:  # the package has no class of its own for its errors
            file = f"{tenant.tenant}.yaml"
            problem = f"is no tokenizer.json: {str(error)[:200]}"
            raise ConfigError(str(tenants_dir / file), "model.tokenizer", ascii(str(path)), problem) from None
