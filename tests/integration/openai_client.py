"""How do tests use the service through OpenAI's own package?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai

from tests.integration.conftest import Service

TOOL: dict[str, Any] = {
    "name": "look_up",
    "description": "Looks a word up.",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}


@contextmanager
def openai_client(service: Service, key: str = "sk-demo", **more: Any) -> Iterator[openai.OpenAI]:
    """As any user of the package would make it, but for the retries: a test wants to see what is refused."""
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 60.0, **more}
    ) as client:
        yield client
