"""How is the service run in the foreground, on one machine? `python -m deployments`, or `make run`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from configs.errors import ConfigError
from configs.loading import load_service, load_tenants
from deployments import server

#: `serve_app` composes everything and is imported by name, late: Serve reads its environment when it is imported.
APPLICATION = "serve_app"


def main() -> None:
    try:
        config = load_service(os.environ)
        tenants = load_tenants(config)
    except ConfigError as error:
        print(f"cannot serve: {error}", file=sys.stderr)  # noqa: T201  a command talks to its terminal
        raise SystemExit(1) from None
    plain_keys = [key.plain for tenant in tenants.values() for key in tenant.keys if key.plain is not None]
    key = f"Authorization: Bearer {plain_keys[-1].get_secret_value()}" if plain_keys else "one of your tenants' keys"
    url = f"http://{config.http.host}:{config.http.port}"
    resource = config.objects.host_resource
    server.run(
        _application,
        host=config.http.host,
        port=config.http.port,
        data_dir=config.data_dir,
        banner=f"Mobula is at {url} (documentation: {url}/docs). Use the key: {key}",
        # One node runs everything, so it is also the node that has the data.
        resources={resource: 1000} if resource else None,
    )


def _application() -> Any:
    serve_app = importlib.import_module(APPLICATION)
    # Here, where a person reads along, and not only in the hosts, which would keep the service from becoming ready.
    serve_app.check_data()
    return serve_app.app


if __name__ == "__main__":
    main()
