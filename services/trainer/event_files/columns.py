"""Columns of texts, ids, kinds and values, whatever type their writer gave them. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.common.events.feedback_kinds import IMPRESSION
from services.common.events.limits import check_id
from services.common.platform.ids import canonical_id
from services.trainer.event_files.locate import NULL_PARTITION
from services.trainer.event_files.places import Place

NULL_WORDS = frozenset({"nan", "NaN", "NaT", "NA", "N/A", "<NA>", "None", "null", "NULL", r"\N", NULL_PARTITION})
"""How writers spell a missing value in text."""
MAX_POSITION = 10_000
_EXACT_BITS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}


def plain(column: Any) -> Any:
    """Return a column as one array without chunks, dictionary (categories, enums), run-length coding or extension (but UUIDs)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk at all, or more than fits one array
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if isinstance(array.type, pa.BaseExtensionType) and array.type.extension_name != "arrow.uuid":
        array = array.storage
    return array


def is_textual(kind: Any) -> bool:
    """Return whether a type holds texts; old Hive, Impala and Spark files store them as binary."""
    return any(
        of(kind)
        for of in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
            pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
        )
    )  # fmt: skip


def texts(column: Any, place: Place) -> Any:
    """Return a textual column as strings.

    Raises:
        EventFileError: bytes that are no UTF-8.
    """
    try:
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            column = column.cast(pa.large_string() if pa.types.is_string_view(column.type) else pa.large_binary())
        strings = column.cast(pa.large_string())
        strings.validate(full=True)
    except pa.ArrowInvalid as error:
        row = next((row for row, value in enumerate(column) if not _is_utf8(value.as_py())), 0)
        raise place.fault(row, column[row].as_py(), "is no UTF-8; write text as UTF-8") from error
    return strings


def _is_utf8(value: bytes | str | None) -> bool:
    try:
        return value is None or isinstance(value, str) or bool(value.decode()) or True
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of texts: `distinct` holds each once, or more often where several spellings are one text; row n is distinct[codes_N[n]]."""

    distinct: Sequence[str]
    codes_N: npt.NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.codes_N)

    def texts(self) -> list[str]:
        """Return the text of each row; equal ones are one string."""
        found: list[str] = np.asarray([*self.distinct, None], dtype=object)[self.codes_N].tolist()
        return found


def read_ids(column: Any, place: Place) -> Coded:
    """Return canonical ids.

    Raises:
        EventFileError: a cell is empty, spells a missing value, is no whole number or text, or is too long.
    """
    column = plain(column)
    kind = column.type
    if column.null_count:
        raise place.fault(pc.index(column.is_null(), True).as_py(), None, "is no id; leave the row out, or give it one")
    if is_textual(kind):
        encoded = texts(column, place).dictionary_encode()
    elif isinstance(kind, pa.BaseExtensionType):  # a UUID
        encoded = column.storage.dictionary_encode()
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        encoded = column.dictionary_encode()
    else:
        raise place.refusal(f"{kind} is no id; write ids as text or integers")
    codes_N = encoded.indices.to_numpy(zero_copy_only=False)
    distinct = []
    for code, value in enumerate(encoded.dictionary.to_pylist()):
        try:
            distinct.append(_id_of(value, kind))
        except ValueError as error:
            raise place.fault(int((codes_N == code).argmax()), value, str(error)) from error
    return Coded(distinct, codes_N)


def _id_of(value: Any, kind: Any) -> str:
    """Return the id in a cell; raises ValueError."""
    if isinstance(value, str):
        text = canonical_id(value)
        if not text:
            raise ValueError("is no id; leave the row out, or give it one")
        if text in NULL_WORDS:
            raise ValueError("is a missing id that was written as text; leave the row out, or give it an id")
    elif isinstance(value, bytes):
        text = str(uuid.UUID(bytes=value))
    elif isinstance(value, int):
        text = str(value)
    else:
        bits = _EXACT_BITS.get(kind)
        if not np.isfinite(float(value)) or value != int(value):
            raise ValueError("is no id: a number with a fraction; write ids as integers or text")
        if bits is not None and abs(value) > 1 << bits:
            raise ValueError(f"is no exact id: {kind} rounds whole numbers beyond 2**{bits}; write ids as integers or text")
        text = str(int(value))
    check_id("is no id", text, ValueError)
    return text


def read_kinds(column: Any, place: Place, known: Collection[str]) -> Coded:
    """Return the feedback kinds of the events.

    Raises:
        EventFileError: a cell is empty, or names a kind that is not in `known`.
    """
    column = plain(column)
    if column.null_count:
        raise place.fault(pc.index(column.is_null(), True).as_py(), None, "is no kind of feedback; name one, or leave the row out")
    if not is_textual(column.type):
        raise place.refusal(f"{column.type} is no kind of feedback; write its name, one of {', '.join(sorted(known))}")
    encoded = texts(column, place).dictionary_encode()
    codes_N = encoded.indices.to_numpy(zero_copy_only=False)
    distinct = []
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        name = text.strip()
        if name not in known:
            what = f"is not in the feature spec (known: {', '.join(sorted(known))}); add it there, or leave the rows out"
            if name == IMPRESSION.name:
                what = "says that an item was seen, which the feature spec does not ask for; write there negatives: {source: impressions}"
            raise place.fault(int((codes_N == code).argmax()), text, what)
        distinct.append(name)
    return Coded(distinct, codes_N)


def read_values(column: Any, place: Place) -> npt.NDArray[np.float64]:
    """Return the values of the events, float64 [N], NaN for what is missing.

    Raises:
        EventFileError: a cell is neither a number nor missing.
    """
    column = plain(column)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if is_textual(kind):
        column = _nulls_for_missing(pc.utf8_trim_whitespace(texts(column, place)))
        try:
            column = column.cast(pa.float64())
        except pa.ArrowInvalid as error:
            row = next(row for row, text in enumerate(column.to_pylist()) if text is not None and not _is_number(text))
            raise place.fault(row, column[row].as_py(), "is no number; write 4.5, or leave the cell empty") from error
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.int8()).cast(pa.float64())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = pc.cast(column, pa.float64(), safe=False)
    else:
        raise place.refusal(f"{kind} is no number; write a column of numbers")
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def read_positions(column: Any, place: Place, is_needed_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return where items stood in what was shown, int32 [N], 1 for the first; 0 for what is missing where it is not needed.

    Raises:
        EventFileError: a cell is no whole number from 1 to MAX_POSITION, or is missing where it is needed.
    """
    values_N = read_values(column, place)
    is_missing_N = np.isnan(values_N)
    with np.errstate(invalid="ignore"):
        is_wrong_N = ~is_missing_N & ~((values_N >= 1) & (values_N <= MAX_POSITION) & (values_N == np.floor(values_N)))
    for wrong_N, what in (
        (is_wrong_N, f"is no place in what was shown: the first item stands at 1, the last at {MAX_POSITION:,} at most"),
        (is_missing_N & is_needed_N, "says nothing of where an item stood that was seen; name its place, or leave the row out"),
    ):
        if wrong_N.any():
            row = int(wrong_N.argmax())
            raise place.fault(row, None if is_missing_N[row] else f"{values_N[row]:g}", what)
    return np.where(is_missing_N, 0, values_N).astype(np.int32)


def _nulls_for_missing(strings: Any) -> Any:
    """Return the strings with null for those that are empty, or spell a missing value."""
    words = pa.array(["", *sorted(NULL_WORDS)], pa.large_string())
    return pc.if_else(pc.is_in(pc.utf8_trim_whitespace(strings), words), None, strings)


def category_column(column: Any, place: Place) -> Any:
    """Return a column of categories as one array whose cells `cell_of` gives; null: the row says nothing of its item's categories.

    An empty text, a word for a missing value and NaN are null, as CSV has nothing else for what is null in Parquet. An empty list is not:
    it says that the item has none.

    Raises:
        EventFileError: its type names no categories.
    """
    column = plain(column)
    if is_textual(column.type):
        return _nulls_for_missing(texts(column, place))
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), None, column)
    kind = column.type
    while any(of(kind) for of in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)):
        kind = kind.value_type
    others = (pa.types.is_map, pa.types.is_union, pa.types.is_temporal, pa.types.is_boolean)
    if any(of(kind) for of in others):
        raise place.refusal(f"{column.type} names no categories; write a list of texts, or texts with '|' between the names")
    return column


def cell_of(column: Any, row: int, place: Place) -> object:
    """Return a cell as Python's value.

    Raises:
        EventFileError: Python has no such value (a struct with a date out of range).
    """
    try:
        cell: object = column[row].as_py()
    except (OverflowError, ValueError) as error:
        # pyarrow cannot print it either.
        raise place.refusal(
            f"row {place.first_row + row + 1}: {column.type} holds what Python cannot ({error}); write a list of texts"
        ) from error
    return cell


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
