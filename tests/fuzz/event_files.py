"""Damaged cells, columns and files of events, handed to the readers of `make train`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from services.common.events.limits import MAX_ID_BYTES
from services.common.platform.ids import canonical_id
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.categories import UnreadableCategories, category_names, separator_of
from services.trainer.event_files.columns import category_column, cell_of, plain, read_ids, read_kinds, read_values
from services.trainer.event_files.history import parts_of
from services.trainer.event_files.locate import FoundFile
from services.trainer.event_files.parts import COLUMNS, ReadOptions
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.text_files import open_text
from services.trainer.event_files.times import FIRST_MS, LAST_MS, UNIT_NAMES, read_times
from tests.fuzzing import Damage

_PLACE = Place(Path("events"), "c")
_TEXTS = [
    text.encode()
    for text in (
        "2024-03-09T10:20:30.250+05:30", "2024-03-09 10:20:30", "2024/03/09", "1700000000", "1.7e9", "20240309",
        "1.0", "-7.00", "007", "nan", r"\N", "",
        "rating", " click ", "4.5", '["a", "b c"]', "['a', \"b's\"]", "[{'id': 16, 'name': 'a'}]",
        '{"a ""b""",c}', "a|b|c", "a, b;c", r"['Children\'s']",
    )
]  # fmt: skip
_NUMBERS = [0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 1.5, 1e300, float("nan"), float("inf")]
_NUMBERS += [1_700_000_000, 1_700_000_000_000, 20_240_309, 20_240_309_102_030]
_KINDS = [
    *(pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.int32(), pa.uint64(), pa.float64(), pa.float32(), pa.decimal128(38, 4)),
    *(pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"), pa.date32(), pa.date64()),
    *(pa.list_(pa.string()), pa.struct([("name", pa.string())]), pa.list_(pa.struct([("id", pa.int64()), ("name", pa.string())]))),
    *(pa.null(), pa.bool_(), pa.time64("us"), pa.list_(pa.timestamp("us")), pa.struct([("name", pa.string()), ("at", pa.timestamp("s"))])),
]
_WORDS = {"rating": 1, "click": 1}
SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")


def _check_times(column: Any, damage: Damage) -> None:
    times_N, _ = read_times(plain(column), _PLACE, damage.random.choice((None, None, *UNIT_NAMES)))
    assert len(times_N) == len(column)
    assert ((times_N >= FIRST_MS) & (times_N < LAST_MS)).all(), column


def _check_ids(column: Any, _: Damage) -> None:
    ids = read_ids(column, _PLACE).texts()
    assert len(ids) == len(column)
    assert all(1 <= len(one.encode()) <= MAX_ID_BYTES and canonical_id(one) == one for one in ids), column


def _check_values(column: Any, _: Damage) -> None:
    assert read_values(column, _PLACE).shape == (len(column),)


def _check_kinds(column: Any, _: Damage) -> None:
    assert set(read_kinds(column, _PLACE, _WORDS).texts()) <= set(_WORDS)


def _check_categories(column: Any, _: Damage) -> None:
    column = category_column(column, _PLACE)
    cells = [cell_of(column, row, _PLACE) for row in range(len(column))]
    separator = separator_of(cells)
    for cell in cells:
        names = category_names(cell, separator)
        assert all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names), cell


CHECKS: tuple[Callable[[Any, Damage], None], ...] = (_check_times, _check_ids, _check_values, _check_kinds, _check_categories)


def column_of(damage: Damage) -> Any:
    """Return a column of up to four cells, of one type or of texts, as a file may hold it."""
    draw = damage.random
    while True:
        kind = draw.choice(_KINDS) if draw.random() < 0.5 else pa.string()
        try:
            column = pa.array([_cell(damage, kind) for _ in range(draw.randint(1, 4))], kind)
        except (pa.ArrowException, OverflowError, ValueError, TypeError, AttributeError):
            continue
        return column.dictionary_encode() if draw.random() < 0.2 and pa.types.is_string(kind) else column


def _cell(damage: Damage, kind: Any) -> Any:
    draw = damage.random
    if draw.random() < 0.05:
        return None
    raw = damage.of_bytes(_TEXTS) if draw.random() < 0.7 else draw.choice(_TEXTS)
    text = raw.decode(errors="replace")
    if pa.types.is_binary(kind):
        return raw
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return text
    if pa.types.is_list(kind):
        return [_cell(damage, kind.value_type) for _ in range(draw.randint(0, 3))]
    if pa.types.is_struct(kind):
        return {field.name: _cell(damage, field.type) for field in kind}
    number = draw.choice(_NUMBERS) if draw.random() < 0.6 else draw.randrange(-(2**63), 2**63)
    if pa.types.is_decimal(kind):
        return Decimal(str(number))
    if pa.types.is_floating(kind):
        return float(number)
    return bool(number) if pa.types.is_boolean(kind) else int(number)


def fuzz_columns(count: int, *, seed: int) -> Counter[str]:
    """Hand `count` columns to every reader of columns; return what became of them."""
    damage = Damage(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        column = column_of(damage)
        for check in CHECKS:
            try:
                check(column, damage)
            except (EventFileError, UnreadableCategories):
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
    return outcomes


_HEADER = "user_id,item_id,kind,value,title,time,categories\n"
_FILES = [
    (
        _HEADER + '1,10,rating,4,"He said ""hi"", twice",2024-03-09T10:20:30.25Z,"[""a"", ""b""]"\n2,20,click,,t,2024-03-09 10:20:31+01,\n'
    ).encode(),
    (_HEADER + '1.0,10,rating,4,"He said \\"hi\\", twice",1700000000,"[\\"a\\"]"\n2,20,click,1,"x\ny",1700000001,a|b\n').encode(),
    (_HEADER.replace(",", "\t") + "u\ti\trating\t5\tt\t20240309\ta, b\n").encode("utf-8-sig"),
    b'{"user_id": 1, "item_id": "10", "kind": "rating", "value": 4.5, "time": 1700000000000, "categories": [{"name": "a"}, {"id": 1}]}\n'
    b'{"user_id": 2, "item_id": "20", "kind": "click", "value": null, "time": 1700000000001, "categories": null}\n',
]


def fuzz_files(count: int, *, seed: int) -> Counter[str]:
    """Have the columns of `count` damaged CSV and JSON files read; return what became of them."""
    damage = Damage(seed)
    outcomes: Counter[str] = Counter()
    found = FoundFile(Path("events.csv"))
    for _ in range(count):
        sound = damage.random.choice(_FILES)
        # A damaged header ends the reading at once: in most files it is whole.
        kept = sound.find(b"\n") + 1 if damage.random.random() < 0.8 and not sound.startswith(b"{") else 0
        try:
            damaged = sound[:kept] + damage.of_bytes([sound[kept:]])
            file = open_text(found.path, partial(io.BytesIO, damaged), COLUMNS)
            parts = list(parts_of(found, file, SPEC, ReadOptions()))
        except EventFileError as error:
            assert str(error).startswith("events.csv: ") and "\n" not in str(error), error
            outcomes["refused"] += 1
        else:
            for part in parts:
                assert len(part.users) == len(part.items) == len(part.kinds) == len(part.values_N) == len(part.times_N)
            outcomes["read"] += 1
    return outcomes
