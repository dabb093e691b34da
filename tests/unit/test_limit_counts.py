"""Does what limits do reach the operator's metric, under labels that it has, and of no more tenants than it may?"""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actors import LocalBackend
from configs.service import ServiceConfig
from deployments import limit_metric
from deployments.chat import ChatReplica
from deployments.ingress.deployment import Ingress
from deployments.limit_counts import BUDGETS, OTHERS, TENANTS_MAX, LimitCounts
from deployments.model_client import ModelClient
from tests.unit.handles import EchoModel, FailingObjects, Handle, tenant

METRIC = "mobula_limited_requests"


class Recorder:
    """In place of Serve's counter, which takes only the labels that it was made with, and all of them."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str, str]] = Counter()

    def __call__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        assert description
        recorder = self

        class Metric:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert set(tags) == set(tag_keys)
                assert value > 0
                assert all(isinstance(tag, str) for tag in tags.values())
                recorder.counts[name, tags["outcome"], tags["tenant"], tags["policy"]] += int(value)

        return Metric()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr("deployments.limit_metric.metrics.Counter", recorder)
    return recorder


def test_what_was_counted_is_told_once_under_its_labels(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    counts = LimitCounts(limit_metric.counter())
    for _ in range(3):
        counts.add("denied", "acme", "burst")
    counts.add("shadow", "acme", "next")
    counts.add("let_through", "acme")
    counts.add("refused", "demo", BUDGETS)
    assert recorder.counts == {}
    for _ in range(2):
        counts.flush()
    assert recorder.counts == {
        (METRIC, "denied", "acme", "burst"): 3,
        (METRIC, "shadow", "acme", "next"): 1,
        (METRIC, "let_through", "acme", ""): 1,
        (METRIC, "refused", "demo", "budgets"): 1,
    }
    # A denial is as it should be.
    assert len(caplog.messages) == 3


def test_tenants_beyond_those_that_the_metric_has_room_for_are_counted_together(recorder: Recorder) -> None:
    counts = LimitCounts(limit_metric.counter())
    for number in range(TENANTS_MAX + 5):
        counts.add("denied", f"t{number}", "burst")
    counts.flush()
    counts.add("denied", "t0", "burst")
    counts.add("refused", "another")
    counts.flush()
    own = {(METRIC, "denied", f"t{number}", "burst"): 1 for number in range(1, TENANTS_MAX)}
    assert recorder.counts == {
        **own,
        (METRIC, "denied", "t0", "burst"): 2,
        (METRIC, "denied", OTHERS, ""): 5,
        (METRIC, "refused", OTHERS, ""): 1,
    }


async def test_a_replica_that_takes_requests_and_one_that_answers_them_count_in_the_metric(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It looks for the node that it is on.
    monkeypatch.setattr(ModelClient, "here", staticmethod(lambda _: EchoModel()))
    # Serve awaits it, and nobody else does.
    monkeypatch.delattr(ChatReplica, "__del__")
    objects, nobody = FailingObjects(tmp_path), Handle(object())

    def connect() -> LocalBackend:
        return objects

    tenants = {"acme": tenant()}
    parts = dict.fromkeys(("chat", "model", "embedding", "ingest", "search"), nobody)
    ingress = Ingress(config=ServiceConfig(), tenants=tenants, connect=connect, peer_header=None, **parts)
    counts = ingress._services.limit_counts  # what it was built with
    counts.add("denied", "acme", "burst")
    counts.flush()
    answering = ChatReplica(config=ServiceConfig(), connect=connect, tenants=tenants, model=nobody, search=nobody)
    answering._counts.add("refused", "acme", BUDGETS)  # what it was built with
    await answering.drain()
    assert recorder.counts == {(METRIC, "denied", "acme", "burst"): 1, (METRIC, "refused", "acme", "budgets"): 1}
    objects.close()
    # It and its door refer to each other, and it is not to outlive this test, when it can be awaited again.
    del answering
    gc.collect()
