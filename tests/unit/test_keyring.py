"""Is a caller who shows a known key recognised, and nobody else?"""

from __future__ import annotations

from hashlib import sha256

import pytest

from configs.tenant import KeyConfig
from deployments.errors import Forbidden, Unauthorized
from deployments.keyring import CREDENTIAL_CHARS_MAX, Keyring, Principal
from tests.unit.handles import SCOPES, tenant

SECRET = "sk-known-by-hash-alone"
DIGEST = sha256(SECRET.encode()).hexdigest()


def _key(**fields: object) -> KeyConfig:
    return KeyConfig.model_validate({"id": "hashed", "scopes": ["chat"], **fields})


@pytest.fixture
def keyring() -> Keyring:
    return Keyring([tenant("acme"), tenant("demo", keys=[_key(sha256=DIGEST.upper())])])


def test_a_key_opens_the_tenant_that_it_belongs_to(keyring: Keyring) -> None:
    assert keyring.authenticate("Bearer sk-acme") == Principal(tenant="acme", key_id="all", scopes=SCOPES)
    assert keyring.authenticate(f"Bearer {SECRET}") == Principal(
        tenant="demo", key_id="hashed", scopes=frozenset({"chat"})
    )


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer ", "Bearer  "])
def test_the_scheme_may_be_in_any_case_and_spaces_do_not_count(keyring: Keyring, scheme: str) -> None:
    assert keyring.authenticate(f"{scheme} sk-acme ").tenant == "acme"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "sk-acme",
        "Basic sk-acme",
        "Token sk-acme",
        "Bearersk-acme",
        "Bearer sk-acm",
        "Bearer sk-acme2",
        "Bearer SK-ACME",
        "Bearer sk-acme sk-acme",
        "Bearer sk-acme,Bearer sk-acme",
        "Bearer \ud83d",
        "Bearer \0",
    ],
)
def test_no_key_another_scheme_and_an_unknown_key_are_refused_alike(
    keyring: Keyring, authorization: str | None
) -> None:
    with pytest.raises(Unauthorized) as refused:
        keyring.authenticate(authorization)
    assert refused.value.args == ()


def test_the_hash_of_a_key_is_no_key(keyring: Keyring) -> None:
    for digest in (DIGEST, DIGEST.upper()):
        with pytest.raises(Unauthorized):
            keyring.authenticate(f"Bearer {digest}")


def test_a_keyring_holds_no_key_but_only_hashes(keyring: Keyring) -> None:
    held = repr(vars(keyring))
    assert DIGEST in held
    assert SECRET not in held
    assert "sk-acme" not in held


def test_a_credential_that_is_too_long_is_no_key_even_if_its_hash_is_known() -> None:
    long = "k" * (CREDENTIAL_CHARS_MAX + 1)
    keyring = Keyring([tenant(keys=[_key(sha256=sha256(long.encode()).hexdigest())])])
    with pytest.raises(Unauthorized):
        keyring.authenticate(f"Bearer {long}")


def test_a_principal_may_do_what_its_key_says_and_nothing_else(keyring: Keyring) -> None:
    principal = keyring.authenticate(f"Bearer {SECRET}")
    principal.require("chat")
    for scope in SCOPES - {"chat"}:
        with pytest.raises(Forbidden) as refused:
            principal.require(scope)
        assert refused.value.scope == scope
