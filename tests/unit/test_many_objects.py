"""Does one host stay small however many objects it is asked for?"""

from __future__ import annotations

from pathlib import Path

import psutil

from actors import ChatSession, LocalBackend
from actors.runtime.host_settings import HostSettings

SESSIONS = 5_000
RESIDENT_MAX = 200
#: About 100 kB for each open session, and what the process takes for itself meanwhile.
GROWTH_BYTES_MAX = 80 * 1024 * 1024


async def test_five_thousand_sessions_touched_in_turn_stay_within_memory_and_open_files(data_dir: Path) -> None:
    settings = HostSettings(slots=16, resident_objects_max=RESIDENT_MAX)
    backend = LocalBackend(data_dir, [ChatSession], settings=settings)
    sessions = backend.namespace(ChatSession)
    process = psutil.Process()
    files_before = process.num_fds()
    for number in range(RESIDENT_MAX):
        await sessions.get("acme", f"warm-{number}").create()
    memory_before = process.memory_info().rss

    files_most = 0
    for number in range(SESSIONS):
        session = sessions.get("acme", f"s{number}")
        await session.create(title=f"number {number}")
        await session.append("user", f"message {number}")
        if number % 100 == 0:
            files_most = max(files_most, process.num_fds())

    assert backend.host.resident_objects <= RESIDENT_MAX
    # A database and its log each.
    assert files_most <= files_before + 2 * RESIDENT_MAX + 8
    assert process.memory_info().rss - memory_before < GROWTH_BYTES_MAX
    for number in range(SESSIONS):
        history = await sessions.get("acme", f"s{number}").history()
        assert [message["content"] for message in history["messages"]] == [f"message {number}"]
    assert backend.host.resident_objects <= RESIDENT_MAX
    backend.close()
