"""Loads the feature states of a base into Redis: `python -m streams.features.backfill --base URL`.

Run it before the first feedback. Items, popularity and neighbours are the base's own partial aggregates and are simply set. A user has one
state only, which the stream goes on with: it is set only where there is none, so that running this again (or late) undoes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

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
from services.common.ranker.feature_records import seen_key, unpack_records, user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.recall_state import unpack_ids

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


def _run(base: str) -> str:
    settings = load_settings(BackfillSettings)
    spec = FeatureSpec.load(settings.feature_spec_path)
    _, arrays = read_artifact(base, expect_schema_hash=spec.schema_hash, only=lambda name: name.startswith(ARRAY_PREFIX))
    if not arrays:
        raise CorruptArtifact(f"base {base} holds no feature states ({ARRAY_PREFIX}…): train it again")
    records = unpack_records({name.removeprefix(ARRAY_PREFIX): array for name, array in arrays.items()})
    try:
        redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=30.0, socket_connect_timeout=5.0)
    except ValueError as error:
        raise ConfigurationError(f"REDIS_URL={settings.redis_url}: {REDIS_URL_FORM}") from error
    with redis:
        written, kept = backfill(redis, records)
    return f"backfill: {written} keys written, {kept} user states kept as they were"


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
