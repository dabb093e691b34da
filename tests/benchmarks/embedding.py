"""`python -m tests.benchmarks.embedding TEXTS ROUNDS`: how many texts a second become vectors?

Chunks of many lengths as a document has them, embedded by what the deployment runs, without Ray, and by bare
sentence-transformers, which sorts texts by length itself. Each has one thread. Runs in a process of its own, and prints
what it measured as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from deployments.embedding import Embedding
from deployments.encoder import TEXTS_MAX, packaged_model
from tests.benchmarks.report import Row, Skipped, at_least_ratio

THREADS = 1
#: Of sentence-transformers, where nothing else is said.
BARE_BATCH = 32
TOKENS_MIN, TOKENS_MAX = 20, 250
# Each is one token, and so is the full stop after every tenth.
VOCABULARY = """
    the a of to in and with for from on water garden plant river engine car road city house window table music song book
    letter school teacher doctor disease medicine law court judge price market bank money ship sea wind storm mountain
    snow fire stone iron gold king war peace bread milk fish bird horse dog tree grass field farm machine computer
    number light sound colour red green old new small large early late slowly often never gives takes holds breaks turns
    grows falls opens closes carries
"""


def texts(count: int = 400) -> list[str]:
    """Always the same, as if in the order of a document."""
    chance = random.Random(20)
    words = VOCABULARY.split()
    return [_text(chance, words, chance.randint(TOKENS_MIN, TOKENS_MAX)) for _ in range(count)]


def _text(chance: random.Random, vocabulary: list[str], tokens: int) -> str:
    words = [chance.choice(vocabulary) for _ in range(tokens * 10 // 11 - 2)]
    return " ".join(" ".join(words[start : start + 10]) + "." for start in range(0, len(words), 10))


def measure(count: int, rounds: int) -> list[Row | Skipped]:
    program = [sys.executable, "-m", __name__, str(count), str(rounds)]
    printed = subprocess.run(program, check=True, timeout=900, stdout=subprocess.PIPE, text=True).stdout
    told: dict[str, list[float]] = json.loads(printed.splitlines()[-1])
    return [
        at_least_ratio(
            f"texts of {TOKENS_MIN} to {TOKENS_MAX} tokens embedded, by one thread",
            told["ours"],
            "bare sentence-transformers, sorted",
            told["bare"],
            ratio=1.0,
            unit="texts/s",
        )
    ]


async def _measure(count: int, rounds: int) -> dict[str, list[float]]:
    ours = Embedding(threads=THREADS)
    # After the encoder, which keeps the packages from the network before they are imported.
    from sentence_transformers import SentenceTransformer

    bare = SentenceTransformer(str(packaged_model()), device="cpu", local_files_only=True)
    many = texts(count)

    async def embedded() -> None:
        for start in range(0, count, TEXTS_MAX):
            await ours.embed(many[start : start + TEXTS_MAX])

    async def encoded() -> None:
        bare.encode(many, batch_size=BARE_BATCH, show_progress_bar=False)

    told: dict[str, list[float]] = {"ours": [], "bare": []}
    ways: list[tuple[str, Callable[[], Awaitable[None]]]] = [("ours", embedded), ("bare", encoded)]
    for number in range(rounds + 1):
        for name, way in ways if number % 2 else reversed(ways):
            begun = time.perf_counter()
            await way()
            if number:  # the first time they warm up
                told[name].append(count / (time.perf_counter() - begun))
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(int(sys.argv[1]), int(sys.argv[2])))))
