"""How long do calls wait for alarms, of which there may be thousands at once?"""

from __future__ import annotations

from pathlib import Path

from actors import DurableObject, LocalBackend
from actors.runtime import AlarmInfo
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings


class Slow(DurableObject):
    def ring_in(self, seconds: float) -> None:
        self.storage.set_alarm(self.clock.now() + seconds)

    def alarm(self, info: AlarmInfo) -> None:
        pass


async def test_of_alarms_that_are_due_together_a_few_are_fired_and_then_the_loop_is_free(
    tmp_path: Path, clock: ManualClock
) -> None:
    objects = LocalBackend(tmp_path, [Slow], settings=HostSettings(slots=4), clock=clock, keeps_time=False)
    for number in range(5):
        await objects.namespace(Slow).get("acme", f"n{number}").ring_in(5.0)
    clock.advance(5.0)

    assert [len(objects.host.fire_due()) for _ in range(4)] == [2, 2, 1, 0]
    objects.close()
