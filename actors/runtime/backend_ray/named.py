"""What do all of the objects' actors have in common?"""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.exceptions import RayActorError

NAMESPACE = "mobula"
#: Of the actors' own processes; Ray keeps what they log in its folder.
LOG_FORMAT = "%(levelname)s %(asctime)s %(name)s -- %(message)s"
CONTROL_PREFIX = "control-"
#: For starting hosts, and for finding them again.
START_TIMEOUT_S = 60.0
_SELF_CALLS_MAX = 100
_SELF_CALL_TIMEOUT_S = 10.0
_SELF_CALL_PAUSE_S = 0.1
ACTOR_OPTIONS: dict[str, Any] = {
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
}


def call_after_start(method: str) -> None:
    """Has the actor that is being constructed call itself: nobody else may for a long time, and there may be alarms.

    From a thread, since the constructor has no event loop, and again and again, since an actor that Ray restarts does
    not get what it sends itself before it is known to be alive.
    """
    me = ray.get_runtime_context().current_actor

    def call() -> None:
        for _ in range(_SELF_CALLS_MAX):
            try:
                # Not `ray.get`, which takes this thread for the event loop's and logs a warning.
                getattr(me, method).remote().future().result(timeout=_SELF_CALL_TIMEOUT_S)
                return
            except (RayActorError, TimeoutError):
                time.sleep(_SELF_CALL_PAUSE_S)

    threading.Thread(target=call, name=method, daemon=True).start()
