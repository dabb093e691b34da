"""Are a tenant's budgets and limits on turns read as they are written, and refused where they say nothing?"""

from __future__ import annotations

from typing import Any

import pytest

from configs.budgets import TOKENS_MAX, TURNS_PER_TENANT
from tests.unit.configuration.workspace import Workspace, tenant_with

DAILY: dict[str, Any] = {"name": "daily", "per": "day", "output_tokens": 500}


def test_a_tenant_that_says_nothing_is_not_limited(workspace: Workspace) -> None:
    tenant = workspace.load(tenant_with())
    assert (tenant.budgets, tenant.concurrency.is_limited) == ((), False)


def test_budgets_and_limits_on_turns_are_read(workspace: Workspace) -> None:
    monthly = {"name": "monthly", "per": "month", "model": "embedded", "input_tokens": TOKENS_MAX}
    tenant = workspace.load(tenant_with(budgets=[DAILY, monthly], concurrency={"per_client": 2}))
    assert [(budget.name, budget.model, budget.per) for budget in tenant.budgets] == [
        ("daily", None, "day"),
        ("monthly", "embedded", "month"),
    ]
    assert [(budget.input_tokens, budget.output_tokens) for budget in tenant.budgets] == [
        (None, 500),
        (TOKENS_MAX, None),
    ]
    assert (tenant.concurrency.per_client, tenant.concurrency.per_tenant) == (2, None)
    assert tenant.concurrency.is_limited


@pytest.mark.parametrize(
    ("budgets", "field"),
    [
        ([{**DAILY, "per": "week"}], "budgets[0].per"),
        ([{**DAILY, "name": "a b"}], "budgets[0].name"),
        ([{**DAILY, "output_tokens": 0}], "budgets[0].output_tokens"),
        ([{**DAILY, "input_tokens": TOKENS_MAX + 1}], "budgets[0].input_tokens"),
        ([{"name": "daily", "per": "day"}], "budgets[0]"),
        ([DAILY, {**DAILY, "per": "month"}], "budgets"),
        ([{**DAILY, "name": TURNS_PER_TENANT}], "budgets"),
        ([{**DAILY, "model": "another"}], "budgets"),
        ([{**DAILY, "name": f"b{number}"} for number in range(9)], "budgets"),
    ],
)
def test_budgets_that_say_nothing_clear_are_refused(
    workspace: Workspace, budgets: list[dict[str, Any]], field: str
) -> None:
    assert workspace.refusal_of_tenant(tenant_with(budgets=budgets)).field == field


@pytest.mark.parametrize("turns", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("name", ["per_client", "per_tenant"])
def test_a_limit_on_turns_is_a_number_from_one(workspace: Workspace, name: str, turns: object) -> None:
    error = workspace.refusal_of_tenant(tenant_with(concurrency={name: turns}))
    assert error.field == f"concurrency.{name}"
