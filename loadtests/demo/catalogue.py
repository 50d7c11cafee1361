"""Writes MovieLens' films to catalog.v1, as the owner of a catalogue does."""

from __future__ import annotations

from collections.abc import Iterable

from tunemesh.catalog.v1 import catalog_item_pb2

from loadtests.movielens import Film
from services.common.events.envelope import headers_for
from services.common.events.topics import CATALOG
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_record import Record


async def write_catalogue(kafka: str, films: Iterable[Film]) -> None:
    """Upsert every film.

    Raises:
        ConfigurationError: the broker cannot be reached.
    """
    producer = AsyncProducer(kafka, client_id="demo-catalogue")
    if not await producer.start(wait_s=10.0):
        raise ConfigurationError(f"the broker at {kafka} cannot be reached")
    now_ms = wall_ms()
    headers = headers_for("tunemesh.catalog.v1.CatalogItem", "/loadtests/demo")
    records = []
    for film in films:
        item = catalog_item_pb2.CatalogItem(item_id=film.item_id, title=film.title, categories=film.categories, updated_at_ms=now_ms)
        records.append(Record(CATALOG.name, film.item_id.encode(), item.SerializeToString(), headers))
    await producer.send(records)
    await producer.stop()
