"""Which kept versions of the ranker have a feature, from checkpoints on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.common.platform.artifacts import Manifest, write_artifact
from services.common.platform.errors import InvalidInput
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.lineage import lineages
from services.common.ranker.spec_description import SCHEMA_ARRAY, described
from services.mesh.__main__ import main
from services.mesh.operate.lineage import document_of_features, document_of_version, kept_versions, version_of
from tests.unit.services.common.ranker.test_columns import spec_with

PRICE = {"raw_feature": {"feature_name": "price", "expression": "item:price"}}
CLIPPED = {"raw_feature": {"feature_name": "price", "expression": "item:price", "clip": [0, 9]}}
CITY = {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Rome"]}}


def keep(folder: Path, spec: FeatureSpec, epoch: int, seq: int) -> None:
    manifest = Manifest(
        kind="checkpoint",
        model="ranker",
        schema_hash=spec.schema_hash,
        lineage_id="l",
        epoch=epoch,
        seq=seq,
        created_at_ms=1_795_309_200_000,
    )
    arrays = {SCHEMA_ARRAY: described(spec), "dense/weight": np.ones(3, np.float32)}
    write_artifact(folder / "checkpoints" / f"checkpoint-{epoch:06d}-{seq:06d}", manifest, arrays)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    keep(tmp_path, spec_with(), 1, 40)
    keep(tmp_path, spec_with(format=2, features=[PRICE]), 2, 7)
    keep(tmp_path, spec_with(format=2, features=[PRICE, CITY]), 3, 9)
    return tmp_path


def test_a_feature_names_the_kept_versions_that_have_it(store: Path) -> None:
    spec = spec_with(format=2, features=[PRICE, CITY])
    rows = {row["feature"]: row for row in document_of_features(lineages(spec), kept_versions(str(store)))}
    assert rows["price"]["versions"] == ["2.7", "3.9"]
    assert rows["city"]["versions"] == ["3.9"]
    assert rows["item.mean"]["versions"] == ["1.40", "2.7", "3.9"]
    assert rows["price"]["sources"] == [{"reference": "item:price", "topic": "catalog.v1", "file": "column of --items or of the events"}]


def test_a_version_names_what_it_is_made_from(store: Path) -> None:
    kept = kept_versions(str(store))
    document = document_of_version(version_of(kept, "ranker/2.7"))
    assert (document["version"], document["checkpoint"]) == ("2.7", "checkpoint-000002-000007")
    assert [source["reference"] for source in document["sources"]] == ["feedback:kind", "feedback:value", "item:categories", "item:price"]
    assert version_of(kept, "ranker").name == "3.9"


def test_a_version_that_is_not_kept_is_refused_with_those_that_are(store: Path) -> None:
    with pytest.raises(InvalidInput, match=r"version 9.9 is not kept; kept are 1.40, 2.7, 3.9"):
        version_of(kept_versions(str(store)), "ranker/9.9")


def test_an_empty_store_keeps_no_version(tmp_path: Path) -> None:
    assert kept_versions(str(tmp_path)) == []


def test_a_damaged_checkpoint_is_one_line_and_code_1(store: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TUNEMESH_ARTIFACTS_URL", str(store))
    (store / "checkpoints" / "checkpoint-000002-000007" / "manifest.json").write_text("{}")
    assert main(["lineage", "--run-dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: artifact ")
    assert said.count("\n") == 1
