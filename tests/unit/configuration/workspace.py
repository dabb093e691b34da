"""What does a test of the configuration write, load, and see refused?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.loading import load_service, load_tenants
from configs.service import ServiceConfig
from configs.tenant import TenantConfig

SECRET = "sk-very-secret-0123456789"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
KEY: dict[str, Any] = {"id": "first", "sha256": DIGEST, "scopes": ["chat"]}


class Workspace:
    """A configuration in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tenants = root / "tenants"
        self.tenants.mkdir()
        self.service_file = root / "service.yaml"
        self.service_file.write_text("{}")
        self.environ = {"MOBULA_CONFIG": str(self.service_file)}

    def service(self, text: str | Mapping[str, Any] = "{}", **environ: str) -> ServiceConfig:
        self.service_file.write_text(text if isinstance(text, str) else yaml.safe_dump(dict(text)))
        return load_service(self.environ | environ, working_dir=self.root)

    def tenant(self, content: str | Mapping[str, Any], name: str = "alpha") -> Path:
        file = self.tenants / f"{name}.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(dict(content)))
        return file

    def load(self, content: str | Mapping[str, Any], name: str = "alpha") -> TenantConfig:
        self.tenant(content, name)
        return load_tenants(self.service())[name]

    def refusal_of_service(self, text: str | Mapping[str, Any], **environ: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.service(text, **environ)
        return caught.value

    def refusal_of_tenant(self, content: str | Mapping[str, Any], name: str = "alpha") -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.load(content, name)
        return caught.value


def tenant_with(**fields: Any) -> dict[str, Any]:
    return {"tenant": "alpha", "keys": [KEY]} | fields


def tenant_with_key(**fields: Any) -> dict[str, Any]:
    return {"tenant": "alpha", "keys": [fields]}
