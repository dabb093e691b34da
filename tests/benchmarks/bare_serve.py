"""`python -m tests.benchmarks.bare_serve REPLICAS`: a FastAPI no-op beside the service, on its Ray and its Serve.

What the same settings and processes come to when nothing is done in them.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from fastapi import FastAPI

PREFIX = "/bare"

api = FastAPI()


@api.post("/ratelimit/check")
async def check() -> dict[str, Any]:
    return {"allowed": True, "remaining": 1.0, "retry_after_s": 0.0}


def main(replicas: int) -> None:
    from deployments.fast_http import FAST_HTTP_FLAGS

    os.environ.update(FAST_HTTP_FLAGS)  # before Serve is imported, which reads them then
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from deployments.ingress.deployment import REQUESTS_AT_ONCE_MAX

    ray.init(address="auto", namespace="bench", log_to_driver=False, logging_level=logging.ERROR)

    class Bare:
        pass

    bare: Any = serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=REQUESTS_AT_ONCE_MAX,
        ray_actor_options={"num_cpus": 0.1},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )(serve.ingress(api)(Bare))
    serve.run(bare.bind(), name="bare", route_prefix=PREFIX)


if __name__ == "__main__":
    main(int(sys.argv[1]))
