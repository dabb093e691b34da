"""Does what the configuration says reach the objects' hosts and the processes that take requests?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from actors.runtime.host_settings import HostSettings
from configs.service import HttpConfig, ObjectsConfig, ServiceConfig

# Serve's own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on .Field.:DeprecationWarning")

OTHERS = ObjectsConfig(
    slots=8, hosts=3, idle_after_s=7, resident_objects_max=9, dedicated_max=5, host_resource="disk", slow_turn_ms=250
)


def test_every_field_of_the_objects_section_reaches_the_hosts() -> None:
    from serve_app import cluster_of

    for field in ObjectsConfig.model_fields:
        assert getattr(OTHERS, field) != getattr(ObjectsConfig(), field), "the test must tell it from the default"
    cluster = cluster_of(ServiceConfig(objects=OTHERS), {}, ())
    told = {**dataclasses.asdict(cluster.settings), **{name: getattr(cluster, name) for name in cluster.__slots__}}
    assert {field: told[field] for field in ObjectsConfig.model_fields} == OTHERS.model_dump()


def test_the_defaults_of_configuration_and_hosts_are_the_same() -> None:
    settings = dataclasses.asdict(HostSettings())
    defaults = ObjectsConfig().model_dump()
    shared = settings.keys() & defaults.keys()
    assert "slow_turn_ms" in shared
    assert {name: settings[name] for name in shared} == {name: defaults[name] for name in shared}


@pytest.mark.parametrize("wanted", [False, True])
def test_requests_are_logged_only_where_the_configuration_says_so(wanted: bool) -> None:
    from serve_app import build

    application: Any = build(ServiceConfig(http=HttpConfig(access_log=wanted)), {}, (), None)

    logging_config = application._bound_deployment._deployment_config.logging_config
    assert logging_config["enable_access_log"] is wanted
    assert logging_config["log_level"] == ("INFO" if wanted else "WARNING")
    assert HttpConfig().access_log is False
