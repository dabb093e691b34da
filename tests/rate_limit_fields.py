"""What do a response's rate-limit fields say, to a client that reads them by RFC 9651?"""

from __future__ import annotations

from typing import Any

import http_sf
import httpx


def fields(response: httpx.Response, name: str) -> dict[str, dict[str, Any]]:
    """The parameters of each item of the field, by the policy that it is about."""
    told: Any = http_sf.parse(response.headers[name].encode(), tltype="list")
    policies: dict[str, dict[str, Any]] = dict(told)
    assert len(policies) == len(told)
    return policies
