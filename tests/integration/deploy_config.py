"""Deploys a Serve config on a Ray cluster of its own and says when it runs, as `serve deploy` does on another.

Arguments: the config as JSON, the dashboard's port, the custom resources as JSON. Ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import time

POLL_EVERY_S = 0.5
RUNNING_WITHIN_S = 180.0


def main() -> None:
    config, dashboard_port, resources = json.loads(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    # Loopback only, as on any other cluster that the tests start.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    ray.init(
        address="local",
        num_cpus=2,
        resources=resources,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard_port,
        log_to_driver=False,
    )
    client = ServeSubmissionClient(f"http://127.0.0.1:{dashboard_port}")
    client.deploy_applications(config)
    deadline_s = time.monotonic() + RUNNING_WITHIN_S
    while True:
        (application,) = client.get_serve_details()["applications"].values()
        if application["status"] == "RUNNING":
            break
        if application["status"] == "DEPLOY_FAILED" or time.monotonic() > deadline_s:
            raise SystemExit(f"{application['status']}: {application['message']}")
        time.sleep(POLL_EVERY_S)
    placed = {
        actor["name"]: ray.get_actor(actor["name"], namespace=actor["namespace"]) is not None
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == "mobula"
    }
    sys.stdout.write(json.dumps({"running": sorted(placed), "free": ray.available_resources()}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
