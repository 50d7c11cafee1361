"""How often the updater's feed asks its consumers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.common.events.topics import RANKER_BASES, RANKER_DELTAS
from services.common.platform.errors import Unavailable
from services.recommender.updater import kafka_feed


def test_bases_are_looked_for_a_few_times_a_second_however_often_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, polled = [100.0], []

    def consumer(_: str, topic: str, *__: Any, **___: Any) -> Any:
        return SimpleNamespace(poll=lambda **_: polled.append((topic, now[0])) or {}, close=lambda: None)

    monkeypatch.setattr(kafka_feed, "assigned_consumer", consumer)
    monkeypatch.setattr(kafka_feed, "drain_to_end", lambda _: [])
    monkeypatch.setattr(kafka_feed, "RenewedProducer", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(kafka_feed, "dead_letter_writer", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(kafka_feed.time, "monotonic", lambda: now[0])
    feed = kafka_feed.KafkaFeed("nowhere", model="m", replica_id="r", schema_hash="s")
    for _ in range(200):  # four seconds
        assert feed.new_bases() == []
        feed.deltas(0)
        now[0] += 0.02
    of_bases = [at for topic, at in polled if topic == RANKER_BASES.name]
    assert 12 <= len(of_bases) <= 16
    assert len(polled) - len(of_bases) == 200  # deltas are asked for each time
    feed.close()


def test_a_feed_that_cannot_be_connected_whole_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def consumer(_: str, topic: str, *__: Any, **___: Any) -> Any:
        if topic == RANKER_BASES.name:
            raise Unavailable("no such topic")
        return SimpleNamespace(close=lambda: closed.append(topic))

    monkeypatch.setattr(kafka_feed, "assigned_consumer", consumer)
    with pytest.raises(Unavailable):
        kafka_feed.KafkaFeed("nowhere", model="m", replica_id="r", schema_hash="s")
    assert closed == [RANKER_DELTAS.name]
