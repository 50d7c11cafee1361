"""The exported features in the hands of Feast itself: registered, joined point in time, and served from its online store.

Feast has an environment of its own in build/tests, made once from the package index: its pins are not the project's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests import limits
from tests.feature_exports import FIRST_S, written
from tests.run.plan import ROOT

pytestmark = [pytest.mark.ml, pytest.mark.deep]

VERSION = "0.67.0"
ENVIRONMENT = ROOT / "build" / "tests" / f"feast-{VERSION}"
ASK = """
import sys
from datetime import datetime
import pandas as pd
from feast import FeatureStore

repository, questions, answers, online = sys.argv[1:]
store = FeatureStore(repo_path=repository)
views = {view.name: [field.name for field in view.features] for view in store.list_feature_views()}
features = [f"{view}:{name}" for view, names in views.items() for name in names]
joined = store.get_historical_features(entity_df=pd.read_parquet(questions), features=features, full_feature_names=True).to_df()
joined.to_parquet(answers)
store.materialize(start_date=datetime(1969, 12, 31), end_date=datetime(2030, 1, 1))
rows = [{"user_id": "u1", "item_id": "7"}, {"user_id": "nobody", "item_id": "7"}]
served = store.get_online_features(features=["user_attributes:city", "item_attributes:price"], entity_rows=rows)
served.to_df().to_parquet(online)
"""


@pytest.fixture(scope="module")
def feast() -> Path:
    """Return the folder of the environment's programs."""
    if not (ENVIRONMENT / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"feast=={VERSION}"]
        subprocess.run(pip, check=True, timeout=limits.seconds(600))
        (ENVIRONMENT / "ready").touch()
    return ENVIRONMENT / "bin"


def test_feast_joins_what_was_known_at_each_moment_and_serves_the_latest(feast: Path, tmp_path: Path) -> None:
    views = written(tmp_path)
    repository = tmp_path / "made" / "feast"
    subprocess.run([str(feast / "feast"), "apply"], cwd=repository, check=True, timeout=limits.seconds(120))
    moments = pd.Series(range(40)) * 3 - 15
    questions = pd.DataFrame(
        {
            "user_id": [f"u{number % 20}" for number in range(40)],
            "item_id": [str(number % 12) for number in range(40)],
            "event_timestamp": pd.to_datetime(FIRST_S + moments, unit="s", utc=True),
        }
    )
    questions.to_parquet(tmp_path / "questions.parquet")
    paths = [str(tmp_path / f"{name}.parquet") for name in ("questions", "answers", "online")]
    ask = [str(feast / "python"), "-c", ASK, str(repository), *paths]
    subprocess.run(ask, check=True, timeout=limits.seconds(300))
    key = ["user_id", "item_id", "event_timestamp"]
    answers = pd.read_parquet(tmp_path / "answers.parquet").sort_values(key).reset_index(drop=True)
    assert len(answers) == len(questions)
    for name, view in views.items():
        entity = view.columns[0]
        expected = pd.merge_asof(
            questions.sort_values("event_timestamp"), view.sort_values("event_timestamp"), on="event_timestamp", by=entity
        ).sort_values(key)
        for column in view.columns[2:]:
            found = [_plain(value) for value in answers[f"{name}__{column}"]]
            assert found == [_plain(value) for value in expected[column]], f"{name}.{column}"
    assert answers["user_counters__log_count"].isna().any() and answers["user_counters__log_count"].notna().any()
    online = pd.read_parquet(tmp_path / "online.parquet")
    assert [_plain(value) for value in online["city"]] == [["Oslo"], None]
    assert online["price"].tolist() == [7.0, 7.0]


def _plain(value: object) -> object:
    """Return a cell as plain Python: what is absent is None in any of its forms."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return value.tolist() if hasattr(value, "tolist") else value
