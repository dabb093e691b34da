"""Which configuration does this process run with?

`load_service` reads the service's file and applies the environment's overrides, `load_tenants` reads the tenants'
folder and checks what no single file can show. Either gives a complete, consistent value or raises one `ConfigError`.
A changed file is taken up at the next start, but for a tenant's limits, which the service looks for with `tenant_files`
and `load_tenant` while it runs.

Relative paths: `tenants_dir`, `migrations` and a tenant's `tokenizer` are part of the configuration, and count from the
folder of the file that names them, so that a configuration can be moved as a whole. `data_dir` is no part of it, and
counts from the current directory: the packaged file may lie in a read-only `site-packages`. Processes of a cluster have
current directories of their own; give whole paths there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from configs.errors import ConfigError
from configs.service import ServiceConfig
from configs.tenant import KeyConfig, TenantConfig
from configs.yaml_file import WHOLE_FILE, read, shown

PACKAGED_SERVICE_FILE = Path(__file__).with_name("service.yaml")
ENVIRONMENT = "environment"


def load_service(environ: Mapping[str, str], *, working_dir: Path | None = None) -> ServiceConfig:
    """The service's configuration, its paths absolute.

    Args:
        environ: Where `MOBULA_CONFIG`, `MOBULA_PORT` and `MOBULA_DATA_DIR` are looked up; an empty one counts as unset.
        working_dir: What relative paths in `environ` and `data_dir` count from; the current directory if None.

    Raises:
        ConfigError: a file or a variable is not as it must be.
    """
    working_dir = (working_dir or Path.cwd()).absolute()
    file = PACKAGED_SERVICE_FILE
    if named := environ.get("MOBULA_CONFIG"):
        file = working_dir / named
        if not file.is_file():
            raise ConfigError(ENVIRONMENT, "MOBULA_CONFIG", ascii(named), "must name the service's YAML file")
    service = read(file, ServiceConfig)

    tenants_dir = file.absolute().parent / service.tenants_dir
    if not tenants_dir.is_dir():
        raise ConfigError(str(file), "tenants_dir", ascii(str(service.tenants_dir)), f"no such folder: {tenants_dir}")
    return service.model_copy(
        update={
            "tenants_dir": tenants_dir.resolve(),
            "migrations": service.migrations and (file.absolute().parent / service.migrations).resolve(),
            "data_dir": (working_dir / _data_dir(environ, service)).resolve(),
            "http": service.http.model_copy(update={"port": _port(environ, service)}),
        }
    )


def load_tenants(service: ServiceConfig) -> dict[str, TenantConfig]:
    """Every tenant by its name, in the order of the names.

    Raises:
        ConfigError: there is none, one is not as it must be, or two claim the same key.
    """
    tenants: dict[str, TenantConfig] = {}
    owner_of: dict[str, str] = {}
    for file in tenant_files(service.tenants_dir):
        tenant = load_tenant(file, service, owner_of)
        owner_of |= {key.digest: f"{tenant.tenant}/{key.id}" for key in tenant.keys}
        tenants[tenant.tenant] = tenant
    if not tenants:
        raise ConfigError(str(service.tenants_dir), WHOLE_FILE, "", "holds no tenant: nobody could use the service")
    return tenants


def load_tenant(file: Path, service: ServiceConfig, owner_of: Mapping[str, str] = MappingProxyType({})) -> TenantConfig:
    """One tenant.

    Args:
        file: What it is described in.
        service: What allows what a tenant may say.
        owner_of: Who has a key already, by the key's digest.

    Raises:
        ConfigError: it is not as it must be, or claims a key that has an owner.
    """
    tenant = read(file, TenantConfig)
    if tenant.tenant != file.stem:
        raise ConfigError(str(file), "tenant", ascii(tenant.tenant), f"must be the file's name, {file.stem!r}")
    known = dict(owner_of)
    for index, key in enumerate(tenant.keys):
        _check_key(file, f"keys[{index}]", key, service, known)
        known[key.digest] = f"{tenant.tenant}/{key.id}"
    return _with_whole_paths(file, tenant)


def _check_key(file: Path, field: str, key: KeyConfig, service: ServiceConfig, owner_of: dict[str, str]) -> None:
    # The value is left out of both: it is the secret, or its digest.
    if key.plain is not None and not service.allows_plain_keys:
        raise ConfigError(
            str(file),
            f"{field}.plain",
            "",
            "is allowed only with `environment: development` on a loopback host "
            f"(here: {service.environment} on {service.http.host}); give sha256",
        )
    if owner := owner_of.get(key.digest):
        raise ConfigError(str(file), field, repr(key.id), f"is the same key as {owner}: a key opens one tenant, once")


def _with_whole_paths(file: Path, tenant: TenantConfig) -> TenantConfig:
    if tenant.model.tokenizer is None:
        return tenant
    tokenizer = (file.absolute().parent / tenant.model.tokenizer).resolve()
    if not tokenizer.is_file():
        raise ConfigError(
            str(file), "model.tokenizer", ascii(str(tenant.model.tokenizer)), f"no such file: {tokenizer}"
        )
    return tenant.model_copy(update={"model": tenant.model.model_copy(update={"tokenizer": tokenizer})})


def tenant_files(folder: Path) -> list[Path]:
    """The YAML files of the folder, by name. Hidden ones are editors' and Kubernetes' (`..data`), others anybody's.

    Raises:
        ConfigError: the folder can't be read, or one is named as if it were to be read, and is not.
    """
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(str(folder), WHOLE_FILE, "", f"can't be read: {error.strerror or error}") from None
    for path in files:
        if path.suffix.lower() in (".yml", ".yaml") and path.suffix != ".yaml":
            # Passing over it in silence would leave its author wondering where the tenant is.
            raise ConfigError(str(path), WHOLE_FILE, "", "must be named .yaml to be read")
    return [path for path in files if path.suffix == ".yaml"]


def _port(environ: Mapping[str, str], service: ServiceConfig) -> int:
    text = environ.get("MOBULA_PORT")
    if not text:
        return service.http.port
    # int() would also take "+8000", "8_000" and digits of other scripts.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ConfigError(ENVIRONMENT, "MOBULA_PORT", shown(("MOBULA_PORT",), text), "must be a port, 1 to 65535")
    return int(text)


def _data_dir(environ: Mapping[str, str], service: ServiceConfig) -> Path:
    text = environ.get("MOBULA_DATA_DIR")
    if not text:
        return service.data_dir
    if text.startswith("~"):
        raise ConfigError(ENVIRONMENT, "MOBULA_DATA_DIR", ascii(text), "'~' is not expanded: write the whole path")
    return Path(text)
