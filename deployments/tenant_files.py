"""What has changed in the tenants' files since they were last looked at?

Only what limits a tenant is taken over while the service runs (`live_limits.LIVE_FIELDS`). What else has changed is
named in the log, and waits for the next start, with budgets that are of another model. A file that is not as it must be
is named too, and the limits that there were stay. Each file is read again only when its time or size has changed; the
first look reads all of them, since they may be newer than what is running.

It blocks: run it in a thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError
from configs.loading import load_tenant, tenant_files
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments.live_limits import live_fields

logger = logging.getLogger("mobula.limits")


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How the files compare with what is running.

    Attributes:
        restart: What of a tenant waits for the next start, by tenant.
        problems: Why a file can't be used, by its name; "" is the folder itself.
    """

    restart: dict[str, str]
    problems: dict[str, str]


class TenantFiles:
    """The folder of the tenants' files. Belongs to one thread at a time.

    Args:
        service: says where it is.
        running: what the service was started with.
        stat: what is known of a file without reading it.
    """

    def __init__(
        self,
        service: ServiceConfig,
        running: Mapping[str, TenantConfig],
        stat: Callable[[Path], os.stat_result] = os.stat,
    ) -> None:
        self._service = service
        self._running = running
        #: What has been taken over of each.
        self._now = dict(running)
        self._stat = stat
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._restart: dict[str, str] = {}
        self._problems: dict[str, str] = {}

    def look(self) -> dict[str, TenantConfig]:
        """Each tenant whose file was not read before as it is, with what of that may hold now."""
        try:
            files = tenant_files(self._service.tenants_dir)
        except ConfigError as error:
            self._has_problem("", error)
            return {}
        self._problems.pop("", None)
        found: dict[str, TenantConfig] = {}
        for file in files:
            mark = self._mark(file)
            if file in self._seen and self._seen[file] == mark:
                continue
            self._seen[file] = mark
            try:
                tenant = load_tenant(file, self._service)
            except ConfigError as error:
                self._has_problem(file.name, error)
                continue
            self._problems.pop(file.name, None)
            self._compare(tenant)
            if tenant.tenant in self._now:
                self._now[tenant.tenant] = found[tenant.tenant] = self._taken_over(tenant)
        for file in [file for file in self._seen if file not in files]:
            del self._seen[file]
            self._problems.pop(file.name, None)
            self._needs_restart(file.stem, "it has no file any more")
        return found

    def standing(self) -> Standing:
        """What the last look has found, and what the ones before have and is still so."""
        return Standing(restart=dict(self._restart), problems=dict(self._problems))

    def _compare(self, tenant: TenantConfig) -> None:
        running = self._running.get(tenant.tenant)
        if running is None:
            self._needs_restart(tenant.tenant, "it is new")
            return
        now = self._taken_over(tenant)
        changed = ", ".join(name for name in TenantConfig.model_fields if getattr(tenant, name) != getattr(now, name))
        if changed:
            self._needs_restart(tenant.tenant, changed)
        else:
            self._restart.pop(tenant.tenant, None)

    def _taken_over(self, tenant: TenantConfig) -> TenantConfig:
        now, fields = self._now[tenant.tenant], live_fields(tenant)
        if tenant.model.name != now.model.name:
            # They would count nothing of the model that is asked until then.
            del fields["budgets"]
        return now.model_copy(update=fields)

    def _mark(self, file: Path) -> tuple[int, int] | None:
        try:
            status = self._stat(file)
        except OSError:
            return None  # reading it says why
        return status.st_mtime_ns, status.st_size

    def _has_problem(self, name: str, error: ConfigError) -> None:
        told = f"{error.field}: {error.problem}"
        if self._problems.get(name) != told:
            self._problems[name] = told
            logger.error("the limits of before stay: %s", error)

    def _needs_restart(self, tenant: str, what: str) -> None:
        if self._restart.get(tenant) != what:
            self._restart[tenant] = what
            logger.warning("tenant=%s has changes that wait for a restart: %s", tenant, what)
