"""The files that make a folder of Parquet a feature repository of Feast (0.67): feature_store.yaml and features.py. Pure.

Feast is not imported: whoever uses the export has a version of it, and the definitions are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import yaml

from services.trainer.feature_export.views import KEYS, TIMESTAMP, View

STORE_NAME, DEFINITIONS_NAME, DATA = "feature_store.yaml", "features.py", "data"
_TYPES = {
    pa.float32(): "Float32",
    pa.float64(): "Float64",
    pa.list_(pa.string()): "Array(String)",
    pa.list_(pa.float64()): "Array(Float64)",
}


def store(model: str) -> str:
    """Return feature_store.yaml: files for the offline store, SQLite for the online one."""
    project = re.sub(r"[^A-Za-z0-9_]", "_", model).strip("_") or "tunemesh"
    document = {
        "project": project,
        "provider": "local",
        "registry": "registry.db",
        "offline_store": {"type": "file"},
        "online_store": {"type": "sqlite", "path": "online.db"},
        "entity_key_serialization_version": 3,
    }
    return "# Written by Tunemesh (make export-features). `feast apply` in this folder registers features.py.\n" + yaml.safe_dump(
        document, sort_keys=False
    )


def definitions(views: Sequence[View], source: str) -> str:
    """Return features.py.

    Args:
        views: of the export.
        source: what the features were made from, in a line.
    """
    return "\n".join([*_head(views, source), *(line for view in views for line in _view(view))]) + "\n"


def _head(views: Sequence[View], source: str) -> Iterator[str]:
    types = sorted({name for view in views for column in view.columns for name in re.findall(r"\w+", _TYPES[column.arrow])})
    yield f'"""Features of users and items as the ranker has them. Written by Tunemesh (make export-features) from {_plain(source)}."""'
    yield ""
    yield "from datetime import timedelta"
    yield ""
    yield "from feast import Entity, FeatureView, Field, FileSource, ValueType"
    yield f"from feast.types import {', '.join(types)}"
    for side in dict.fromkeys(view.side for view in views):
        yield ""
        yield f'{side} = Entity(name="{side}", join_keys=["{KEYS[side]}"], value_type=ValueType.STRING)'


def _view(view: View) -> Iterator[str]:
    yield ""
    yield f"{view.name} = FeatureView("
    yield f'    name="{view.name}",'
    yield f"    entities=[{view.side}],"
    yield "    ttl=timedelta(0),  # a row holds until the next one"
    yield "    schema=["
    for column in view.columns:
        tags = "" if column.is_called == column.name else f', tags={{"tunemesh": {column.is_called!a}}}'
        yield f'        Field(name="{column.name}", dtype={_TYPES[column.arrow]}{tags}),'
    yield "    ],"
    yield f'    source=FileSource(name="{view.name}", path="{DATA}/{view.name}.parquet", timestamp_field="{TIMESTAMP}"),'
    yield ")"


def _plain(text: str) -> str:
    """Return a text that ends no docstring."""
    return re.sub(r"[\\\"\r\n]", " ", text)
