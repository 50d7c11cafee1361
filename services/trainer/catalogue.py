"""Tells a mesh what files say of items and users: `python -m services.trainer.catalogue --data … --spec …` (`make catalog DATA=…`).

Takes the options of `make train` that say where files are and how they are read, and reads them in the same way, so that a value is in
service what it was in training. Writes to catalog.v1 an item for each that the events or the file of items name, and to profiles.v1 the
users of whom something is known; each with what was known last, and only what the spec's features read. Running it again is harmless.
Knows nothing about models.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_settings import SettingsConfigDict
from tunemesh.catalog.v1.catalog_item_pb2 import CatalogItem
from tunemesh.events.v1.profile_pb2 import Profile

from services.common.events.attributes import attributes_of
from services.common.events.envelope import headers_for
from services.common.events.topics import CATALOG, PROFILES
from services.common.events.wire.attributes import write_attributes
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, ServiceError, Unavailable
from services.common.platform.kafka_compression import Compression
from services.common.platform.kafka_producer import send_each
from services.common.platform.kafka_record import Record
from services.common.platform.secrets import guard_output, without_credentials
from services.common.platform.settings import EXIT_BAD_CONFIGURATION, KafkaSettings, load_settings
from services.common.ranker.declared.plan import Attributes
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.attributes import ITEM_CATEGORIES
from services.trainer.event_files.history import History, read_history, remarks
from services.trainer.event_files.items import read_item_categories, read_item_ids, read_titles
from services.trainer.event_files.options import add_file_options, read_options
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.event_files.parts import ReadOptions
from services.trainer.event_files.places import EventFileError

_SOURCE = "/make/catalog"
_AT_ONCE = 1_000
SEND_TIMEOUT_S = 15.0


class CatalogueSettings(KafkaSettings):
    """Where to write."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_CATALOGUE_")


def items_of(history: History, data: str, options: ReadOptions) -> Iterator[CatalogItem]:
    """Yield the items that the files name, each as it was last.

    Raises:
        EventFileError: a title or an attribute is what a catalogue cannot hold.
    """
    apart = options.items
    titles = read_titles(data, options.names)
    categories, attributes = dict(history.categories), history.item_attributes
    if apart is not None:
        # Items that nobody touched yet are in the catalogue as well.
        categories = dict.fromkeys(read_item_ids(apart, options.names), ()) | categories
        categories |= read_item_categories(apart, options.names, options.category_separator)
        titles |= read_titles(apart, options.names)
    now_ms = wall_ms()
    for item_id, names in categories.items():
        item = CatalogItem(item_id=item_id, title=titles.get(item_id, ""), categories=names, updated_at_ms=now_ms)
        known = {name: value for name, value in attributes.last(item_id).items() if name != ITEM_CATEGORIES}
        write_attributes(attributes_of(f"item {item_id!r}", _sayable(known), EventFileError), item.typed_attributes)
        yield item


def profiles_of(history: History) -> Iterator[Profile]:
    """Yield the users of whom the files say anything, each as they were last.

    Raises:
        EventFileError: an attribute is what a profile cannot hold.
    """
    now_ms = wall_ms()
    for user_id in history.user_attributes.ids():
        if known := history.user_attributes.last(user_id):
            profile = Profile(user_id=user_id, updated_at_ms=now_ms)
            write_attributes(attributes_of(f"user {user_id!r}", _sayable(known), EventFileError), profile.attributes)
            yield profile


def _sayable(known: Attributes) -> dict[str, Any]:
    """Return attributes without NaN, which counts as absent, and mappings as the lists of texts that features read alike."""
    as_texts = {name: [f"{key}:{number!r}" for key, number in value.items()] for name, value in known.items() if isinstance(value, Mapping)}
    return {name: value for name, value in {**known, **as_texts}.items() if value == value}


def records_of(items: Iterator[CatalogItem], profiles: Iterator[Profile]) -> Iterator[Record]:
    """Yield the records to write, keyed by item and user."""
    for item in items:
        headers = headers_for(CatalogItem.DESCRIPTOR.full_name, _SOURCE)
        yield Record(CATALOG.name, item.item_id.encode(), item.SerializeToString(), headers)
    for profile in profiles:
        headers = headers_for(Profile.DESCRIPTOR.full_name, _SOURCE)
        yield Record(PROFILES.name, profile.user_id.encode(), profile.SerializeToString(), headers)


def _send(kafka: str, records: Sequence[Record], compression: Compression) -> None:
    """Write all records.

    Raises:
        Unavailable: no broker, or it does not acknowledge a record, or refuses it. What came before is written; again is harmless.
    """
    for start in range(0, len(records), _AT_ONCE):
        part = records[start : start + _AT_ONCE]
        sent = send_each(kafka, part, client_id="catalogue", timeout_s=SEND_TIMEOUT_S, compression=compression)
        for record, error in zip(part, sent, strict=True):
            if error is not None:
                of = f"{record.topic} at {kafka}: the record of {(record.key or b'').decode()!r}"
                raise Unavailable(f"{of} was not written: {type(error).__name__}: {error}")


def _run(given: argparse.Namespace, work: WorkFolder) -> None:
    spec, settings, options = FeatureSpec.load(given.spec), load_settings(CatalogueSettings), read_options(given)
    history = read_history(given.data, spec, options, work=work)
    print("\n".join(remarks(history)), flush=True)
    records = list(records_of(items_of(history, given.data, options), profiles_of(history)))
    _send(settings.kafka_bootstrap_servers, records, settings.kafka_compression)
    of = {topic: sum(record.topic == topic for record in records) for topic in (CATALOG.name, PROFILES.name)}
    print(f"written: {', '.join(f'{count} records of {topic}' for topic, count in of.items())}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.catalogue", description="Tell a mesh what files say of items and users."
    )
    add_file_options(parser)
    work = WorkFolder()
    try:
        _run(parser.parse_args(argv), work)
    except ConfigurationError as error:
        print(f"configuration error: {without_credentials(str(error))}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    except ServiceError as error:
        hint = "is the mesh up (make up)? KAFKA_BOOTSTRAP_SERVERS names another broker"
        print(f"catalogue: {without_credentials(str(error))}; {hint}", file=sys.stderr)
        return 1
    finally:
        work.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
