"""Reads the logs out of the wheel that they are published in, and makes of them what `make train` reads. Knows nothing about the mesh.

The data: Saito et al. 2021, "Open Bandit Dataset and Pipeline", CC BY 4.0. The wheel of obp 0.4.1 has 10,000 impressions of each of two
policies and three campaigns; nothing of them is kept in this repository.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from services.common.platform.errors import ConfigurationError

CAMPAIGN = "all"
POLICIES = ("random", "bts")
USER_FEATURES = tuple(f"user_feature_{number}" for number in range(4))
ITEM_FEATURES = tuple(f"item_feature_{number}" for number in range(4))
_AFFINITY = re.compile(r"user-item_affinity_(\d+)")
# Signs of each hashed feature in the name that stands for a user: told apart by far.
_SIGNS = 6


def impressions(wheel: Path) -> pa.Table:
    """Return the impressions of both policies in the order of time.

    Columns: user_id (whoever has the same four features), item_id, kind ("click" or "impression"), time, position (1: shown first), the
    user's features as texts, and `affinity`: texts "item:number" of the items that are not 0.
    Raises:
        ConfigurationError: it is no such wheel.
    """
    both = pa.concat_tables([_shown(_member(wheel, f"{policy}/{CAMPAIGN}/{CAMPAIGN}.csv")) for policy in POLICIES])
    return both.sort_by([("time", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")])


def items(wheel: Path) -> pa.Table:
    """Return the items: item_id, `key` (the same as a text, which affinities name), and their four features.

    Raises:
        ConfigurationError: it is no such wheel.
    """
    table = _member(wheel, f"{POLICIES[0]}/{CAMPAIGN}/item_context.csv")
    ids = pc.cast(table["item_id"], pa.string())
    return pa.table({"item_id": ids, "key": ids, **{name: table[name] for name in ITEM_FEATURES}})


def _member(wheel: Path, name: str) -> pa.Table:
    types = {"timestamp": pa.timestamp("us", "UTC")}
    try:
        with zipfile.ZipFile(wheel) as archive:
            raw = archive.read(f"obp/dataset/obd/{name}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{wheel}: it is not the wheel of obp 0.4.1, whose logs are needed: {error}") from error
    return csv.read_csv(io.BytesIO(raw), convert_options=csv.ConvertOptions(column_types=types))


def _shown(table: pa.Table) -> pa.Table:
    parts = [pc.utf8_slice_codeunits(table[name], 0, _SIGNS) for name in USER_FEATURES]
    return pa.table(
        {
            "user_id": pc.binary_join_element_wise(*parts, "-"),
            "item_id": pc.cast(table["item_id"], pa.string()),
            "kind": pc.if_else(pc.equal(table["click"], 1), "click", "impression"),
            "time": pc.cast(table["timestamp"], pa.timestamp("ms", "UTC"), safe=False),
            "position": table["position"],
            **{name: table[name] for name in USER_FEATURES},
            "affinity": pa.array(_affinities(table), pa.list_(pa.string())),
        }
    )


def _affinities(table: pa.Table) -> list[list[str]]:
    """Return of each row the numbers that are not 0, as texts "item:number"."""
    columns = {found[1]: name for name in table.column_names if (found := _AFFINITY.fullmatch(name))}
    numbers_NI = np.column_stack([table[name].to_numpy() for name in columns.values()])
    item_ids = list(columns)
    return [[f"{item_ids[at]}:{row_I[at]:g}" for at in np.flatnonzero(row_I)] for row_I in numbers_NI]
