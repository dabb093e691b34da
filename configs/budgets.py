"""How many tokens of its model may a tenant use, and how many of its turns may be in flight?

A budget is for a calendar day or month, in UTC. Where nothing is set, nothing is asked and nothing is limited.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from configs.base import Config

#: Tokens of one budget; sums of them stay whole numbers everywhere.
TOKENS_MAX = 10**15
BUDGETS_MAX = 8
#: What a limit on turns is called where it denies one; no budget may be called so.
TURNS_PER_CLIENT = "turns-per-client"
TURNS_PER_TENANT = "turns-per-tenant"

_Tokens: TypeAlias = Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None
_Turns: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)] | None


class ConcurrencyConfig(Config):
    """Turns that were begun and have not ended, those that wait included."""

    per_client: _Turns = None
    per_tenant: _Turns = None

    @property
    def is_limited(self) -> bool:
        return self.per_client is not None or self.per_tenant is not None


class BudgetConfig(Config):
    """Tokens that may be used in each window of time."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    model: str | None = Field(default=None, min_length=1, max_length=200)
    per: Literal["day", "month"]
    input_tokens: _Tokens = None
    output_tokens: _Tokens = None

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetConfig:
        if self.input_tokens is None and self.output_tokens is None:
            raise ValueError("needs input_tokens, output_tokens or both: without them it limits nothing")
        return self


def _named_apart(budgets: tuple[BudgetConfig, ...]) -> tuple[BudgetConfig, ...]:
    seen = {TURNS_PER_CLIENT, TURNS_PER_TENANT}
    for budget in budgets:
        if budget.name in seen:
            raise ValueError(f"has a second {budget.name!r}: clients are told by name what denied them")
        seen.add(budget.name)
    return budgets


Budgets: TypeAlias = Annotated[
    tuple[BudgetConfig, ...], Field(strict=False, max_length=BUDGETS_MAX), AfterValidator(_named_apart)
]
