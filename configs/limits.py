"""How much may a client of a tenant use, what does a request cost, and what makes a client?

Buckets of tokens, one for each policy and client. What is said here may change while the service runs: see
`deployments.live_limits`. `configs/tenants/demo.yaml` explains each field, `docs/limits.md` how they work together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from configs.base import Config
from configs.service import HEADER_NAME

#: By what routes of the HTTP interface are called in `routes` and `costs`, whatever their paths are.
RouteName = Literal[
    "admin",
    "chat",
    "check",
    "documents",
    "embeddings",
    "ingest",
    "kv",
    "models",
    "search",
    "sessions",
    "turns",
    "usage",
]
ROUTES: tuple[RouteName, ...] = get_args(RouteName)
POLICIES_MAX = 8
#: The policy that `refill_per_second` and `capacity` are the short form of.
DEFAULT_POLICY = "default"

Rate = Annotated[float, Field(ge=0, le=1_000_000)]
Capacity = Annotated[float, Field(gt=0, le=1_000_000_000)]
Cost = Annotated[float, Field(ge=0, le=1_000_000_000)]


def _client_key_part(part: str) -> str:
    if part in ("api_key", "ip", "user"):
        return part
    kind, _, header = part.partition(":")
    if kind != "header":
        raise ValueError("must be api_key, ip, user or header:<name>")
    if not HEADER_NAME.fullmatch(header):
        raise ValueError("must name an HTTP header after 'header:'")
    if header.lower() in ("authorization", "cookie"):
        # It would become part of an object's name, on disk and in logs.
        raise ValueError("must not be a header that carries a secret: use api_key")
    return f"header:{header.lower()}"


class LeaseConfig(Config):
    """How much a process may take of a bucket ahead of the requests that it is for, and for how long."""

    tokens: float = Field(gt=0, le=1_000_000)
    ttl_s: float = Field(default=2.0, gt=0, le=30)


class PolicyConfig(Config):
    """A bucket that each client has."""

    # What needs no quoting in a structured field, and is a word in a metric.
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    capacity: Capacity
    refill_per_second: Rate
    routes: Annotated[tuple[RouteName, ...], Field(strict=False, min_length=1)] | None = None
    shadow: bool = False
    lease: LeaseConfig | None = None


class TenantLimits(Config):
    refill_per_second: Rate = 20.0
    capacity: Capacity = 100.0
    policies: Annotated[tuple[PolicyConfig, ...], Field(strict=False, max_length=POLICIES_MAX)] = ()
    costs: Mapping[RouteName, Cost] = {}
    client_key: Annotated[
        tuple[Annotated[str, AfterValidator(_client_key_part)], ...], Field(strict=False, min_length=1, max_length=4)
    ] = ("api_key",)
    fail: Literal["closed", "open"] = "closed"
    fail_after_s: float = Field(default=5.0, gt=0, le=30)

    @field_validator("client_key")
    @classmethod
    def _each_once(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError("names a part twice")
        return parts

    @field_validator("policies")
    @classmethod
    def _names_are_unique(cls, policies: tuple[PolicyConfig, ...]) -> tuple[PolicyConfig, ...]:
        names = [policy.name for policy in policies]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"has two policies named {name!r}")
        return policies

    @field_validator("costs")
    @classmethod
    def _are_the_tenants_to_say(cls, costs: Mapping[RouteName, float]) -> Mapping[RouteName, float]:
        if "check" in costs:
            raise ValueError("can't hold check: its requests say what they cost")
        return costs

    @model_validator(mode="after")
    def _one_form(self) -> TenantLimits:
        if self.policies and self.model_fields_set & {"refill_per_second", "capacity"}:
            raise ValueError(
                f"must have either policies, or refill_per_second and capacity, which are one named {DEFAULT_POLICY!r}"
            )
        return self

    @property
    def all_policies(self) -> tuple[PolicyConfig, ...]:
        """What is written in either form."""
        return self.policies or (
            PolicyConfig(name=DEFAULT_POLICY, capacity=self.capacity, refill_per_second=self.refill_per_second),
        )
