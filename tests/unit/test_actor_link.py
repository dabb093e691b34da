"""What does a caller learn of a call whose host ended under way?"""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from actors.runtime.backend_ray.link import ActorLink, given
from actors.runtime.call import HostLost, HostRetired


class _Method:
    async def remote(self, *_: Any) -> Any:
        raise ActorDiedError


class _Identity:
    def hex(self) -> str:
        return "a1"


class DeadHost:
    """The handle of an actor that was retired, and ended."""

    batch = wait = _Method()
    _actor_id = _Identity()


@pytest.fixture
def link() -> ActorLink:
    async def was_retired(actor_id: str) -> bool:
        return actor_id == "a1"

    handle: Any = DeadHost()
    return ActorLink("solo", given(handle), was_retired)


async def test_a_call_that_a_retired_host_never_took_may_be_sent_elsewhere(link: ActorLink) -> None:
    with pytest.raises(HostRetired):
        await link.batch([])


async def test_a_call_that_ran_and_whose_reply_went_with_its_retired_host_counts_as_lost(link: ActorLink) -> None:
    with pytest.raises(HostLost):
        await link.wait("ticket")
