"""/usage: the tokens that a tenant's turns have used."""

from __future__ import annotations

import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from actors import InvalidArgument, TokenUsage
from actors.token_usage import DAYS_KEPT, USAGE_NAME, DayUsage
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

router = APIRouter(route_class=guarded_by("chat", "usage"), tags=["usage"])

#: What is shown where nothing is asked for.
DAYS_DEFAULT = 30


@router.get("/usage", response_model=replies.UsageReport)
async def usage(
    request: Request,
    caller: Caller,
    first: Annotated[
        datetime.date | None, Query(alias="from", description=f"a day (UTC); {DAYS_DEFAULT} days are shown without it")
    ] = None,
    last: Annotated[datetime.date | None, Query(alias="to", description="the last day; today without it")] = None,
) -> Response:
    """By day and model, with their sums. A turn counts on the day it ended, some seconds later."""
    services = services_of(request)
    last = last or datetime.datetime.now(datetime.UTC).date()
    if first is None:
        first = last - min(datetime.timedelta(days=DAYS_DEFAULT - 1), last - datetime.date.min)
    if first > last:
        raise InvalidArgument("from", first.isoformat(), "must not be after `to`")
    if last - first > datetime.timedelta(days=DAYS_KEPT):
        raise InvalidArgument("from", first.isoformat(), f"must be at most {DAYS_KEPT} days before `to`")
    ledger = services.objects.namespace(TokenUsage).get(caller.tenant, USAGE_NAME)
    days: list[DayUsage] = await ledger.days(first.isoformat(), last.isoformat())
    asked, answered = sum(day["input_tokens"] for day in days), sum(day["output_tokens"] for day in days)
    totals = {
        "turns": sum(day["turns"] for day in days),
        "input_tokens": asked,
        "output_tokens": answered,
        "total_tokens": asked + answered,
    }
    shown = [{**day, "total_tokens": day["input_tokens"] + day["output_tokens"]} for day in days]
    return reply({"from": first.isoformat(), "to": last.isoformat(), "days": shown, "totals": totals})
