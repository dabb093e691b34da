"""How do objects live on a Ray cluster?

Three kinds of named, detached, restarting actors, all of them made and found here and nowhere else:

- `host-0` ... in the Ray namespace `mobula`: the pool's hosts, each owner of its share of the slots.
- `tenant:name` in the Ray namespace of its class: the host of one dedicated object.
- `control-<fingerprint>` in `mobula`: starts the pool, and starts, counts and ends dedicated hosts. No call of an
  object passes through it.

A restarted host locks its slots again before it runs anything. Ray never repeats a call by itself (`max_task_retries`
is 0): the stub decides what is safe to repeat.
"""

from __future__ import annotations

from actors.runtime.backend_ray.backend import RayBackend
from actors.runtime.backend_ray.entry import connect, start
from actors.runtime.backend_ray.named import NAMESPACE

__all__ = ["NAMESPACE", "RayBackend", "connect", "start"]
