"""`make catalog`: what files say of items and users, as records that the mesh's readers read."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from services.common.events.catalog import CatalogItem
from services.common.events.profile import Profile
from services.common.events.topics import CATALOG, PROFILES
from services.common.events.wire import catalog, profile
from services.common.platform.kafka import read_compacted
from services.trainer import catalogue
from tests.learning import SPEC

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.timeout(120)]

FEATURES = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Oslo"]}},
    {"raw_feature": {"feature_name": "price", "expression": "item:price"}},
    {"lookup_feature": {"feature_name": "liking", "map": "user:likes", "key": "item:colour"}},
]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options of the command: two people, three items, of which nobody touched one."""
    event = {"kind": "rating", "value": 4, "likes": '["red:2"]'}
    events = write(
        tmp_path / "events.csv",
        {"who": "ada", "item_id": "1", "time": 1_700_000_000, "city": "Rome", **event},
        {"who": "ada", "item_id": "2.0", "time": 1_700_000_900, "city": "Oslo", **event},
        {"who": "bob", "item_id": "1", "time": 1_700_000_300, "city": "", **event, "likes": ""},
    )
    items = write(
        tmp_path / "items.csv",
        {"item_id": 1, "title": "One", "categories": "a|b", "price": 9.5, "colour": "red", "secret": "x"},
        {"item_id": 2, "title": "", "categories": "", "price": "", "colour": "blue", "secret": "x"},
        {"item_id": 3, "title": "Three", "categories": "b", "price": 1, "colour": "", "secret": "x"},
    )
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC.model_dump(mode="json", exclude_defaults=True) | {"format": 2, "features": FEATURES}))
    return ["--data", str(events), "--items", str(items), "--spec", str(spec), "--columns", "user_id=who"]


def test_items_and_users_are_written_as_they_were_last_and_a_second_time_alike(
    files: list[str],
    fresh_broker: Broker,
    mesh_topics: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mesh_topics(fresh_broker.bootstrap)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", fresh_broker.bootstrap)
    for _ in range(2):
        assert catalogue.main(files) == 0
        assert "written: 3 records of catalog.v1, 1 records of profiles.v1" in capsys.readouterr().out
    records = read_compacted(fresh_broker.bootstrap, CATALOG.name, client_id="test")
    items = {key.decode(): catalog.read_change(record.key, record.value, record.headers) for key, record in records.items()}
    assert {key: (item.title, item.categories, dict(item.attributes)) for key, item in items.items() if isinstance(item, CatalogItem)} == {
        "1": ("One", ("a", "b"), {"price": 9.5, "colour": "red"}),
        "2": ("", (), {"colour": "blue"}),
        "3": ("Three", ("b",), {"price": 1.0}),
    }
    ((key, record),) = read_compacted(fresh_broker.bootstrap, PROFILES.name, client_id="test").items()
    assert key == b"ada"
    ada = profile.read_change(record.key, record.value, record.headers)
    assert isinstance(ada, Profile) and dict(ada.attributes) == {"city": "Oslo", "likes": ("red:2",)}


def test_without_a_broker_it_is_one_line_that_says_so(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setattr(catalogue, "SEND_TIMEOUT_S", 1.0)
    assert catalogue.main(files) == 1
    error = capsys.readouterr().err
    assert error.startswith("catalogue: no Kafka broker at 127.0.0.1:9") and "make up" in error and error.count("\n") == 1


def test_what_a_catalogue_cannot_hold_is_refused_by_name(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    write(tmp_path / "items.csv", {"item_id": 1, "price": 1, "colour": "é" * 10_000})
    assert catalogue.main(files) == 2
    assert "item '1'.colour" in capsys.readouterr().err
