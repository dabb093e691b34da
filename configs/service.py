"""How is this service run: where does it listen, where is its data, and how much may it take?

One `ServiceConfig` describes one service; whatever differs between tenants is in `configs.tenant`. The comments of
`configs/service.yaml` explain each field. Paths are as written until `configs.loading` has resolved them.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from configs.base import Config, ConfigPath

#: RFC 9110 "token": what the name of an HTTP header is made of.
HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
# The last label holds a letter: 300.1.1.1 is a mistyped address and no name.
_HOST_NAME = re.compile(r"(?!.*\.\d+$)(?!\d+$)[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
# Ray schedules by these itself; a custom resource of such a name would be refused by Ray much later.
_RAY_RESOURCES = frozenset({"CPU", "GPU", "TPU", "memory", "object_store_memory"})


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8, without host bits") from None


Network = Annotated[str, AfterValidator(_network)]
Port = Annotated[int, Field(ge=1, le=65535)]


class HttpConfig(Config):
    host: str = "127.0.0.1"
    port: Port = 8000
    client_ip_header: str | None = None
    trusted_proxies: Annotated[tuple[Network, ...], Field(strict=False, max_length=256)] = ()
    replicas: int = Field(default=1, ge=1, le=1_000)
    access_log: bool = False

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if not _HOST_NAME.fullmatch(host):
                raise ValueError("must be an IP address or a host name") from None
        return host

    @field_validator("client_ip_header")
    @classmethod
    def _is_a_header(cls, header: str | None) -> str | None:
        if header is not None and not HEADER_NAME.fullmatch(header):
            raise ValueError("must be the name of an HTTP header")
        return header and header.lower()

    @model_validator(mode="after")
    def _header_and_proxies_go_together(self) -> HttpConfig:
        if (self.client_ip_header is None) != (not self.trusted_proxies):
            raise ValueError(
                "must have both client_ip_header and trusted_proxies, or neither: the header counts only where one of "
                "these has set it"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service. A name other than localhost may resolve to anything."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class ObjectsConfig(Config):
    slots: int = Field(default=256, ge=1, le=65536)
    hosts: int = Field(default=2, ge=1, le=1024)
    idle_after_s: float = Field(default=10.0, gt=0, le=86_400)
    resident_objects_max: int = Field(default=1000, ge=1, le=100_000)
    dedicated_max: int = Field(default=16, ge=0, le=10_000)
    slow_turn_ms: float = Field(default=100.0, gt=0, le=60_000)
    host_resource: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")

    @field_validator("hosts")
    @classmethod
    def _each_host_has_a_slot(cls, hosts: int, info: ValidationInfo) -> int:
        slots = info.data.get("slots")
        if slots is not None and hosts > slots:
            raise ValueError(f"must not be more than slots ({slots}): the others would own nothing")
        return hosts

    @field_validator("host_resource")
    @classmethod
    def _is_a_custom_resource(cls, resource: str | None) -> str | None:
        if resource in _RAY_RESOURCES:
            raise ValueError("is a resource of Ray's own: name a custom one")
        return resource


class RequestLimits(Config):
    body_bytes_max: int = Field(default=10 * 1024 * 1024, ge=1024, le=1024**3)
    message_chars_max: int = Field(default=32_000, ge=1, le=1_000_000)
    query_chars_max: int = Field(default=2_000, ge=1, le=100_000)
    kv_value_bytes_max: int = Field(default=262_144, ge=1, le=16 * 1024**2)


class IngestLimits(Config):
    documents_per_request_max: int = Field(default=100, ge=1, le=10_000)
    text_chars_max: int = Field(default=2_000_000, ge=1, le=100_000_000)
    pdf_pages_max: int = Field(default=1_000, ge=1, le=100_000)
    extract_timeout_s: float = Field(default=30.0, gt=0, le=600)


class ServiceConfig(Config):
    environment: Literal["development", "production"] = "development"
    http: HttpConfig = HttpConfig()
    data_dir: ConfigPath = Path("data")
    tenants_dir: ConfigPath = Path("tenants")
    migrations: ConfigPath | None = None
    objects: ObjectsConfig = ObjectsConfig()
    limits: RequestLimits = RequestLimits()
    ingest: IngestLimits = IngestLimits()

    @property
    def allows_plain_keys(self) -> bool:
        """A key written out in a file is fine only where nobody but its author can use it."""
        return self.environment == "development" and self.http.is_loopback
