"""Loads the feature states of a base into Redis: `python -m streams.features.backfill --base URL`.

Run it before the first feedback. Items, popularity and neighbours are the base's own partial aggregates and are simply set. A user has one
state only, which the stream goes on with: it is set only where there is none, so that running this again (or late) undoes nothing.
The states of a base of another feature spec are translated as the stream translates its own (services.common.ranker.half_lives).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy.typing as npt
from pydantic_settings import SettingsConfigDict
from redis import Redis
from redis.exceptions import RedisError

from services.common.platform.artifacts import read_artifact
from services.common.platform.errors import ConfigurationError, CorruptArtifact, ServiceError, Unavailable
from services.common.platform.secrets import guard_output
from services.common.platform.settings import (
    EXIT_BAD_CONFIGURATION,
    REDIS_URL_FORM,
    FeatureSpecSettings,
    RedisSettings,
    load_settings,
    process_redactor,
)
from services.common.ranker.feature_records import BASE_PARTIAL, global_key, item_key, popular_key, seen_key, unpack_records, user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.recall_state import pack_popular, unpack_ids, unpack_popular
from services.common.ranker.spec_description import SCHEMA_ARRAY, Description
from services.common.ranker.states import GlobalState, present_item_bytes

ARRAY_PREFIX = "features/"
_CHUNK = 1_000

ItemT = TypeVar("ItemT")


class BackfillSettings(RedisSettings, FeatureSpecSettings):
    """Only shared settings: REDIS_URL and TUNEMESH_FEATURE_SPEC."""

    model_config = SettingsConfigDict(env_prefix="")


def backfill(redis: Redis, records: Iterable[tuple[str, bytes]]) -> tuple[int, int]:
    """Write packed (key, value) records; return how many keys were written and how many user states were already there.

    Raises:
        Unavailable: Redis does not answer.
    """
    num_written = num_kept = 0
    try:
        for chunk in _chunks(records, _CHUNK):
            pipe = redis.pipeline(transaction=False)
            users = 0
            for key, value in chunk:
                if key.startswith(user_key("")):
                    pipe.set(key, value, nx=True)
                    users += 1
                elif key.startswith(seen_key("")):
                    pipe.sadd(key, *unpack_ids(value))
                else:
                    pipe.set(key, value)
            kept = sum(answer is None for answer in pipe.execute())
            num_kept += kept
            num_written += len(chunk) - kept
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis (REDIS_URL) does not answer: {error}") from error
    return num_written, num_kept


def _chunks(records: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, size)):
        yield chunk


def translated(records: Sequence[tuple[str, bytes]], spec: FeatureSpec, half_lives: Sequence[float]) -> list[tuple[str, bytes]]:
    """Return the records of a base as they are under `spec`.

    Args:
        records: (key, value) pairs.
        spec: the present one.
        half_lives: of the base; states of before do not say them.
    Raises:
        CorruptArtifact: a state is not what batch training writes.
    """
    clock = next((GlobalState.from_bytes(value).clock for key, value in records if key == global_key(BASE_PARTIAL)), 0.0)
    first, last = item_key("", BASE_PARTIAL).split(":" + BASE_PARTIAL)[0], ":" + BASE_PARTIAL
    result = []
    for key, value in records:
        if key.startswith(first) and key.endswith(last):
            value = present_item_bytes(spec, value, unsaid=half_lives)
        elif key == popular_key(BASE_PARTIAL):
            present = spec.counters.half_lives_events[0]
            value = pack_popular(present, unpack_popular(value, present, clock, unsaid=half_lives[0]))
        result.append((key, value))
    return result


def _run(base: str) -> str:
    settings = load_settings(BackfillSettings)
    spec = FeatureSpec.load(settings.feature_spec_path)
    wanted = (SCHEMA_ARRAY, ARRAY_PREFIX)
    manifest, arrays = read_artifact(base, expect_schema_hash=None, only=lambda name: name.startswith(wanted))
    features = {name.removeprefix(ARRAY_PREFIX): array for name, array in arrays.items() if name.startswith(ARRAY_PREFIX)}
    half_lives = _half_lives(base, manifest.schema_hash, arrays, spec)
    if not features:
        raise CorruptArtifact(f"base {base} holds no feature states ({ARRAY_PREFIX}…): train it again")
    records = translated(unpack_records(features), spec, half_lives)
    try:
        redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=30.0, socket_connect_timeout=5.0)
    except ValueError as error:
        raise ConfigurationError(f"REDIS_URL={settings.redis_url}: {REDIS_URL_FORM}") from error
    with redis:
        written, kept = backfill(redis, records)
    return f"backfill: {written} keys written, {kept} user states kept as they were"


def _half_lives(base: str, schema_hash: str, arrays: Mapping[str, npt.NDArray[Any]], spec: FeatureSpec) -> Sequence[float]:
    """Return the half-lives of a base's states. Refuses a base whose states mean something else under `spec`."""
    if schema_hash == spec.schema_hash:
        return spec.counters.half_lives_events
    if SCHEMA_ARRAY not in arrays:
        raise CorruptArtifact(f"base {base}: schema {schema_hash!r} is foreign, this program has {spec.schema_hash!r}")
    try:
        description = Description.of(arrays[SCHEMA_ARRAY])
    except CorruptArtifact as error:
        raise CorruptArtifact(f"base {base}: {error}") from error
    different = description.differences(spec, free=description.parts.keys() | FeatureSpec.model_fields.keys())
    if different:
        raise CorruptArtifact(
            f"base {base}: its states mean something else: {'; '.join(different)}: restore that feature spec, or train a base"
        )
    return description.half_lives_events


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    parser = argparse.ArgumentParser(prog="python -m streams.features.backfill", description="Load a base's feature states into Redis.")
    parser.add_argument("--base", required=True, help="folder or URL of the base")
    base = parser.parse_args(argv).base
    try:
        print(_run(base))
    except ConfigurationError as error:
        print(f"configuration error: {process_redactor()(str(error))}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    except (ServiceError, CorruptArtifact) as error:
        print(f"backfill: {process_redactor()(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
