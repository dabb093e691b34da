"""A service that does nothing but answer, started through `deployments.server` by the tests as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deployments import server


def application() -> Any:
    from ray import serve

    class Tiny:
        async def __call__(self, request: Any) -> str:
            return "tiny"

    return serve.deployment(ray_actor_options={"num_cpus": 0.1})(Tiny).bind()


if __name__ == "__main__":
    port, data_dir, banner = sys.argv[1:]
    server.run(application, host="127.0.0.1", port=int(port), data_dir=Path(data_dir), banner=banner)
