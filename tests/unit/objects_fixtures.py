"""How do tests see whether an object keeps all that it needs in its storage?

They run twice: with an object that stays resident, and with one that hibernates after each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from actors import DurableObject, LocalBackend, ObjectOverloaded
from actors.runtime.call import unpack
from actors.runtime.clock import ManualClock

Hibernating = partial(LocalBackend, always_evict=True)


async def ring(backend: LocalBackend, clock: ManualClock) -> int:
    """Fires the alarms that are due by `clock`, and those that they set. Returns how many handlers ran."""
    ran = 0
    while due := backend.host.alarms.take_due(clock.now(), 100):
        for object_id in due:
            ran += unpack(await backend.host.fire_alarm(object_id).wait())
    return ran


@contextmanager
def refusing(backend: LocalBackend, durable_class: type[DurableObject], method: str) -> Iterator[None]:
    """Within the block the method of every object of the class is refused."""

    def refuse(*_: Any) -> None:
        raise ObjectOverloaded(durable_class.__name__, "as the test wished", 1.0)

    with _replaced(backend, durable_class, method, lambda _: refuse):
        yield


@contextmanager
def counting(backend: LocalBackend, durable_class: type[DurableObject], method: str) -> Iterator[list[str]]:
    """Gives a list to which each run of the method within the block adds its object, whoever called it."""
    ran: list[str] = []

    def counted(known: Callable[..., Any]) -> Callable[..., Any]:
        def run(instance: DurableObject, *args: Any, **kwargs: Any) -> Any:
            ran.append(str(instance.id))
            return known(instance, *args, **kwargs)

        return run

    with _replaced(backend, durable_class, method, counted):
        yield ran


@contextmanager
def _replaced(
    backend: LocalBackend,
    durable_class: type[DurableObject],
    method: str,
    by: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    methods = backend._specs[durable_class.__name__].methods
    known = methods[method]
    methods[method] = replace(known, function=by(known.function))
    yield
    methods[method] = known
