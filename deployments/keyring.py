"""Who is calling, and what may they do?

The tenant comes from the credential alone. Keys are known by their SHA-256, which is what is looked up: a lookup by
hash tells nothing of the key by its timing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from configs.tenant import Scope, TenantConfig
from deployments.errors import Forbidden, Unauthorized

#: A longer credential is no key of ours, and is not hashed to find that out.
CREDENTIAL_CHARS_MAX = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """A caller whose key was recognised."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """
        Raises:
            Forbidden: the key lacks the scope.
        """
        if scope not in self.scopes:
            raise Forbidden(scope)


class Keyring:
    """All keys of all tenants."""

    def __init__(self, tenants: Iterable[TenantConfig]) -> None:
        self._principals = {
            key.digest: Principal(tenant=tenant.tenant, key_id=key.id, scopes=key.scopes)
            for tenant in tenants
            for key in tenant.keys
        }

    def authenticate(self, authorization: str | None) -> Principal:
        """The caller behind an `Authorization: Bearer <key>` header.

        Raises:
            Unauthorized: no header, another scheme, or an unknown key; it doesn't say which.
        """
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key or len(key) > CREDENTIAL_CHARS_MAX:
            raise Unauthorized
        principal = self._principals.get(sha256(key.encode("utf-8", "surrogatepass")).hexdigest())
        if principal is None:
            raise Unauthorized
        return principal
