"""Who is a tenant: which keys open it, how much may it use, where do its objects live, and which model answers it?

One `TenantConfig` is one file of the tenants' folder. `configs/tenants/demo.yaml` explains each field. What two tenants
must not share (keys, names) is checked by `configs.loading`, which sees them all.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from configs.base import Config, ConfigPath
from configs.budgets import Budgets, ConcurrencyConfig
from configs.limits import TenantLimits

#: `operator` is for those who run the service: where a route says so, the key's other scopes count for every tenant.
Scope = Literal["chat", "ingest", "search", "kv", "admin", "operator"]
Placement = Literal["pooled", "dedicated"]
_Named = TypeVar("_Named", str | None, Path | None)
# As `actors.turn` has it, and not from there: whoever reads a configuration may not have Ray imported by that.
OnConflict = Literal["enqueue", "reject", "interrupt", "rollback"]

# RFC 6750: what may follow "Bearer" in a request. A key outside of it could never be presented.
_BEARER = re.compile(r"[A-Za-z0-9\-._~+/]{1,512}=*")

#: By name; others are given by import path. `deployments.tools` makes them.
BUILT_IN_TOOLS = ("vector_search", "kv_get")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful assistant. Answer briefly. Where documents are given, answer from them, and say so when they do "
    "not hold the answer."
)


#: The name of the model that comes with the service.
EMBEDDED_MODEL = "embedded"


class KeyConfig(Config):
    """An API key, known by its SHA-256 alone, or in development by itself; exactly one of the two."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9A-Fa-f]{64}$", repr=False)
    plain: SecretStr | None = Field(default=None, repr=False)
    scopes: Annotated[frozenset[Scope], Field(strict=False, min_length=1)]

    @field_validator("sha256")
    @classmethod
    def _in_lower_case(cls, digest: str | None) -> str | None:
        return digest and digest.lower()

    @field_validator("plain")
    @classmethod
    def _can_be_presented(cls, plain: SecretStr | None) -> SecretStr | None:
        if plain is not None and not _BEARER.fullmatch(plain.get_secret_value()):
            raise ValueError("must be 1 to 512 letters, digits or -._~+/ (a bearer token)")
        return plain

    @model_validator(mode="after")
    def _one_of_two(self) -> KeyConfig:
        if (self.sha256 is None) == (self.plain is None):
            raise ValueError("needs exactly one of sha256 and plain")
        return self

    @property
    def digest(self) -> str:
        """The SHA-256 of the key in lower-case hex: what a presented key's hash is compared with."""
        if self.sha256 is not None:
            return self.sha256
        assert self.plain is not None, "validated"
        return sha256(self.plain.get_secret_value().encode()).hexdigest()


class PlacementConfig(Config):
    """Where the tenant's objects of each class live. The fields are the classes' names, as a person knows them."""

    ChatSession: Placement = "pooled"
    TokenBucket: Placement = "pooled"
    KeyValue: Placement = "pooled"
    DocumentIndex: Placement = "pooled"
    Directory: Placement = "pooled"

    def of(self, class_name: str) -> Placement:
        """The placement of a class; classes that tenants can't place are pooled."""
        placement: Placement = getattr(self, class_name) if class_name in type(self).model_fields else "pooled"
        return placement


class SessionsConfig(Config):
    ttl_s: float | None = Field(default=None, gt=0, le=10 * 366 * 86_400)
    messages_max: int = Field(default=1000, ge=1, le=1_000_000)


class TurnsConfig(Config):
    """How the answers to a session's messages are made, one after another."""

    # As `actors.turn.OnConflict`, which is not imported: it brings Ray with it, before Ray's environment is set.
    on_conflict: Literal["enqueue", "reject", "interrupt", "rollback"] = "enqueue"
    queue_max: int = Field(default=8, ge=0, le=1_000)
    attempts_max: int = Field(default=3, ge=1, le=10)
    events_kept_s: float = Field(default=600.0, ge=0, le=30 * 86_400)
    broken_events_kept_s: float = Field(default=3_600.0, ge=0, le=30 * 86_400)


class ModelConfig(Config):
    """The model that answers: the embedded one, or with `base_url` any OpenAI-compatible server."""

    base_url: str | None = Field(default=None, max_length=2_000)
    model: str | None = Field(default=None, min_length=1, max_length=200, validate_default=True)
    # Capitals only, as environment variables are written: a key pasted here by mistake is refused, not looked up.
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Z_][A-Z0-9_]{0,127}$")
    system_prompt: str = Field(default=DEFAULT_SYSTEM_PROMPT, max_length=20_000)
    temperature: float = Field(default=0.2, ge=0, le=2)
    max_tokens: int = Field(default=256, ge=1, le=131_072)
    context_tokens: int = Field(default=4096, ge=2, le=10_000_000, validate_default=True)
    timeout_s: float = Field(default=120.0, gt=0, le=3_600)
    tokenizer: ConfigPath | None = Field(default=None, validate_default=True)
    continues: bool | None = None

    @property
    def continues_answers(self) -> bool:
        """It can go on from the part of an answer; where nothing else is said the embedded one can, and others not."""
        return self.base_url is None if self.continues is None else self.continues

    @property
    def name(self) -> str:
        """What clients call the model, and what its tokens count for."""
        return self.model or EMBEDDED_MODEL

    def answer_tokens(self, asked: int | None) -> int:
        """How many an answer may have: what the client asks for, and no more than the tenant may."""
        return min(asked or self.max_tokens, self.max_tokens)

    @field_validator("base_url")
    @classmethod
    def _is_a_server(cls, base_url: str | None) -> str | None:
        if base_url is None:
            return None
        problem = "must be an http or https URL such as http://127.0.0.1:8080/v1"
        try:
            url = urlsplit(base_url)
            port = url.port
        except ValueError:
            raise ValueError(problem) from None
        if (
            url.scheme not in ("http", "https")
            or not url.hostname
            or port == 0
            or re.search(r"[\s\x00-\x1f]", base_url)
        ):
            raise ValueError(problem)
        if "@" in url.netloc:
            raise ValueError("must not hold a user or password: name the variable that holds the key in api_key_env")
        if url.query or url.fragment:
            raise ValueError("must not hold a query or a fragment")
        return base_url

    @field_validator("model", "api_key_env", "tokenizer")
    @classmethod
    def _goes_with_a_server(cls, value: _Named, info: ValidationInfo) -> _Named:
        if "base_url" not in info.data:  # refused already, and that error says more
            return value
        base_url = info.data["base_url"]
        if value is not None and base_url is None:
            raise ValueError("is for another server: needs base_url")
        if value is None and base_url is not None and info.field_name == "model":
            raise ValueError("is required with base_url: the server wants the name of one of its models")
        return value

    @field_validator("context_tokens")
    @classmethod
    def _leaves_room_for_a_question(cls, context_tokens: int, info: ValidationInfo) -> int:
        max_tokens = info.data.get("max_tokens")
        if max_tokens is not None and context_tokens <= max_tokens:
            raise ValueError(f"must be more than max_tokens ({max_tokens}): question and answer share it")
        return context_tokens


def _tool_path(path: str) -> str:
    if path not in BUILT_IN_TOOLS and not _IMPORT_PATH.fullmatch(path):
        raise ValueError(f"must be {', '.join(BUILT_IN_TOOLS)} or an import path, package.module:function")
    return path


class ToolsConfig(Config):
    """What the tenant's model may call. Paths are imported by `deployments.tools`, which also checks them at start."""

    enabled: Annotated[tuple[Annotated[str, AfterValidator(_tool_path)], ...], Field(strict=False, max_length=32)] = ()
    steps_max: int = Field(default=6, ge=2, le=50)
    calls_per_step_max: int = Field(default=8, ge=1, le=32)
    timeout_s: float = Field(default=15.0, gt=0, le=600)
    result_bytes_max: int = Field(default=8_000, ge=500, le=1_000_000)
    context_share: float = Field(default=0.25, gt=0, le=0.75)

    @field_validator("enabled")
    @classmethod
    def _names_are_unique(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        names = [path.rpartition(":")[2] for path in paths]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"has two tools named {name}: a model could not tell them apart")
        return paths


class RetrievalConfig(Config):
    top_k: int = Field(default=3, ge=1, le=50)
    candidates: int = Field(default=30, ge=1, le=500, validate_default=True)
    context_chars_max: int = Field(default=4_000, ge=100, le=1_000_000)
    cache_ttl_s: float = Field(default=60.0, ge=0, le=86_400)

    @field_validator("candidates")
    @classmethod
    def _enough_to_choose_from(cls, candidates: int, info: ValidationInfo) -> int:
        top_k = info.data.get("top_k")
        if top_k is not None and candidates < top_k:
            raise ValueError(f"must not be less than top_k ({top_k})")
        return candidates


class TenantConfig(Config):
    tenant: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{2,62}$")
    keys: Annotated[tuple[KeyConfig, ...], Field(strict=False, min_length=1, max_length=1_000)]
    placement: PlacementConfig = PlacementConfig()
    limits: TenantLimits = TenantLimits()
    sessions: SessionsConfig = SessionsConfig()
    turns: TurnsConfig = TurnsConfig()
    model: ModelConfig = ModelConfig()
    tools: ToolsConfig = ToolsConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    concurrency: ConcurrencyConfig = ConcurrencyConfig()
    budgets: Budgets = ()

    @field_validator("budgets")
    @classmethod
    def _are_of_its_model(cls, budgets: Budgets, info: ValidationInfo) -> Budgets:
        model = info.data.get("model")
        for budget in budgets:
            if model is not None and budget.model not in (None, model.name):
                raise ValueError(
                    f"has one for the model {budget.model!r}, which the tenant does not use: {model.name!r}"
                )
        return budgets

    @field_validator("tools")
    @classmethod
    def _model_can_use_them(cls, tools: ToolsConfig, info: ValidationInfo) -> ToolsConfig:
        model = info.data.get("model")
        if tools.enabled and model is not None and model.base_url is None:
            raise ValueError("needs model.base_url to enable any: the embedded model is too small to use tools")
        return tools

    @field_validator("keys")
    @classmethod
    def _ids_are_unique(cls, keys: tuple[KeyConfig, ...]) -> tuple[KeyConfig, ...]:
        seen: set[str] = set()
        for key in keys:
            if key.id in seen:
                raise ValueError(f"has two keys with the id {key.id!r}")
            seen.add(key.id)
        return keys

    @property
    def tool_tokens(self) -> int:
        """What of the model's context is kept free for one turn's calls and their results."""
        return int(self.model.context_tokens * self.tools.context_share) if self.tools.enabled else 0
