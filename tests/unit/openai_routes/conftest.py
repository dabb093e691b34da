"""OpenAI's own package against the routes of /v1, over turns that really run in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI

from tests.unit.openai_routes.lab import Lab, build, lab_at


@pytest.fixture(scope="package")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_at(tmp_path) as lab:
        yield lab


@pytest.fixture
async def client(app: FastAPI, lab: Lab) -> AsyncIterator[openai.AsyncOpenAI]:
    async with lab.client(app) as client:
        yield client
