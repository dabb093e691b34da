"""Which client does a request come from?

What makes a client is the tenant's choice: API key, address, user, a header, or several of them together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.runtime.object_id import encode_part
from deployments.keyring import Principal

USER_HEADER = "x-user-id"
#: A longer name is replaced by its hash: file names are bounded, and one character may take three there.
CLIENT_CHARS_MAX = 56


@dataclass(frozen=True, kw_only=True, slots=True)
class Requester:
    """What a request shows of the client behind it. Header names are in lower case; few tenants ask for the address."""

    principal: Principal
    address: Callable[[], str]
    headers: Mapping[str, str]


def client_name(parts: Sequence[str], requester: Requester) -> str:
    """The client's name: the parts that the tenant chose, each encoded so that none can pose as two.

    Encoded parts hold neither "&" nor "/", so that no value is taken for no value, or for another's hash.
    """
    values = []
    for part in parts:
        if part == "api_key":
            value = requester.principal.key_id
        elif part == "ip":
            value = requester.address()
        elif part == "user":
            value = requester.headers.get(USER_HEADER, "")
        else:
            value = requester.headers.get(part.removeprefix("header:"), "")
        values.append(encode_part(value))
    client = "&".join(values) or "&"
    return client if len(client) <= CLIENT_CHARS_MAX else f"sha256/{hashlib.sha256(client.encode()).hexdigest()}"
