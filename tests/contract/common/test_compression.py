"""Every producer of the mesh compresses as TUNEMESH_KAFKA_COMPRESSION says: no call that leads to one leaves it out."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.events.dead_letter_writer import KafkaLetterBox, dead_letter_writer
from services.common.platform import kafka_async, kafka_producer
from services.common.platform.errors import ConfigurationError
from services.common.platform.kafka_batches import AIOKAFKA_PACKAGES, KAFKA_PYTHON_PACKAGES
from services.common.platform.kafka_compression import compression_type
from services.mesh.operate.redrive import Redrive
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.recommender.updater.kafka_feed import KafkaFeed
from services.trainer.kafka_calls import make_producer
from streams.quality.quality_log import QualityLog
from streams.worker import new_app

TAKE_IT = (
    kafka_async.AsyncProducer,
    kafka_producer.durable_producer,
    kafka_producer.RenewedProducer,
    kafka_producer.send_each,
    dead_letter_writer,
    KafkaLetterBox,
    KafkaFeed,
    make_producer,
    QualityLog,
    Redrive,
    new_app,
)
CLIENTS = {"KafkaProducer", "AIOKafkaProducer", "Producer", "App", "_App"}
MAKE_A_CLIENT = {"kafka_async.py", "kafka_producer.py", "worker.py"}


@functools.cache
def calls() -> list[tuple[Path, str, ast.Call]]:
    """Every call of a plain name or attribute in the services and streams: file, last name, call."""
    return list(_calls())


def _calls() -> Iterator[tuple[Path, str, ast.Call]]:
    for path in [*(REPOSITORY_ROOT / "services").rglob("*.py"), *(REPOSITORY_ROOT / "streams").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, getattr(node.func, "attr", getattr(node.func, "id", "")), node


def test_no_way_to_a_producer_leaves_the_compression_out() -> None:
    places = {each.__name__: list(inspect.signature(each).parameters) for each in TAKE_IT}
    names = {name: place.index("compression") if "compression" in place else len(place) for name, place in places.items()}
    seen, without = set(), []
    for path, name, call in calls():
        if name in names:
            seen.add(name)
            given = any(word.arg in ("compression", None) for word in call.keywords) or len(call.args) > names[name]
            if not given:
                without.append(f"{path.relative_to(REPOSITORY_ROOT)}:{call.lineno} {name}")
    assert seen == set(names)
    assert without == []


def test_a_client_is_made_where_the_compression_is_known_and_nowhere_else() -> None:
    assert {path.name for path, name, _ in calls() if name in CLIENTS} <= MAKE_A_CLIENT


@pytest.mark.parametrize("packages", [AIOKAFKA_PACKAGES, KAFKA_PYTHON_PACKAGES], ids=["aiokafka", "kafka-python"])
def test_a_codec_is_the_clients_own_name_and_a_missing_package_is_named(packages: dict[str, tuple[str, str]]) -> None:
    assert compression_type("none", packages) is None
    assert [compression_type(codec, packages) for codec in ("gzip", "snappy", "lz4", "zstd")] == ["gzip", "snappy", "lz4", "zstd"]
    absent = packages | {"lz4": ("no_such_module", "no-such-package")}
    with pytest.raises(ConfigurationError, match=r"TUNEMESH_KAFKA_COMPRESSION=lz4: the Python package no-such-package is not installed"):
        compression_type("lz4", absent)


def test_a_package_that_is_there_and_does_not_import_is_named_before_a_client_is_made(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_codec.py").write_text("import what_it_needs_beneath")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"the Python package broken-codec does not import \(ModuleNotFoundError.*beneath"):
        compression_type("lz4", AIOKAFKA_PACKAGES | {"lz4": ("broken_codec", "broken-codec")})
