"""A history of events from files: what `make train` learns. Wires the other modules together; the order of rows is the order of time."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from services.common.platform.secrets import without_credentials
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import Versions
from services.trainer.event_files.attributes import ITEM_CATEGORIES
from services.trainer.event_files.gathering import Gathering
from services.trainer.event_files.items import read_item_categories
from services.trainer.event_files.load import open_named
from services.trainer.event_files.locate import FoundFile, find_files
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.event_files.parts import COLUMNS, Part, ReadOptions, check_columns, event_fields, read_part
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.reading import EventFile
from services.trainer.event_files.times import facts_of
from services.trainer.progress import RowsRead

_AS_WRITTEN = ReadOptions()
# A part of the events may be so much larger or smaller than it was asked for before it is said.
_FAR_OFF = 0.5


@dataclass(frozen=True, slots=True)
class History:
    """Events to learn, in the order of time, and the categories of every item in the files.

    Attributes:
        set_aside: events that cannot be learned, by what is wrong with them, and where the first one stands.
        notes: what the files were taken for, a line each.
        user_attributes: what was known of users, and when; of the fields that the spec's features read.
        item_attributes: the same of items.
    """

    interactions: Sequence[Interaction]
    categories: dict[str, tuple[str, ...]]
    set_aside: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    user_attributes: Versions = field(default_factory=Versions)
    item_attributes: Versions = field(default_factory=Versions)


def read_history(
    path: str | Path,
    spec: FeatureSpec,
    options: ReadOptions = _AS_WRITTEN,
    *,
    work: WorkFolder | None = None,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda _: None,
) -> History:
    """Read and check files of events: a file, a folder, a pattern, or an fsspec URL of one of these.

    Events whose value cannot be learned (outside the range of its kind, or missing where it counts) are set aside and counted. More events
    than fit a block (`ordered.BLOCK_ROWS`) are on disk, in the order of time.

    Args:
        path: where they are.
        spec: the feature spec.
        options: what the files do not say themselves.
        work: where events that do not stay in memory are; None: a folder of the system's for such files.
        clock: in seconds, for the progress.
        say: is told how many rows are read.
    Raises:
        EventFileError: a file is missing, lacks a column, or holds what cannot be read without guessing; names file, column, row, value and
            what to do.
        ConfigurationError: the work folder cannot be written.
        Unavailable: a store does not answer.
    """
    work = WorkFolder() if work is None else work
    gathering, progress = Gathering(spec, options, work), RowsRead("reading", clock=clock, say=say)
    wanted = list(dict.fromkeys((*COLUMNS, *(name for fields in event_fields(spec, options) for name in fields.columns))))
    taken_for: dict[str, None] = {}
    num_files = 0
    for found in find_files(path):
        before = gathering.num_rows
        for part in parts_of(found, open_named(found.path, wanted, options.names), spec, options):
            if len(part.users):
                gathering.add(part)
                taken_for[part.taken_for] = None
                progress.at(gathering.num_rows)
        num_files += gathering.num_rows > before
    if not gathering.num_rows:
        raise EventFileError(f"{path}: holds no events")
    categories, separated = gathering.categories()
    if options.items is not None:
        apart = read_item_categories(options.items, options.names, options.category_separator)
        categories |= {item_id: names for item_id, names in apart.items() if item_id in categories}
    gathered = gathering.finish(str(path))
    progress.done(gathering.num_rows, gathered.how)
    rows: Sequence[Interaction] = gathered.events
    users, items = gathered.users, gathered.items
    if any((one.side, one.field) == ("item", ITEM_CATEGORIES) for one in spec.plan.wanted):
        items = items.with_fixed(ITEM_CATEGORIES, categories)
    num_answered = gathered.num_answered
    cut = cut_by_time(rows, options.until_fraction)
    if far_off := coarse_cut(len(rows), options.until_fraction, cut):
        say(f"--until-fraction {options.until_fraction:g}: {far_off}")
    rows = rows[:cut]
    begin, end = (f"{datetime.fromtimestamp(row.time_ms / 1e3, UTC):%Y-%m-%d %H:%M}" for row in (rows[0], rows[-1]))
    files = "1 file" if num_files == 1 else f"{num_files} files"
    of_categories = f"; categories separated by {separated!r}" if separated else ""
    note = f"{path}: {files}, {gathering.num_rows} events from {begin} to {end} UTC; time: {', '.join(taken_for)}{of_categories}"
    notes = (without_credentials(note), *_note_of_impressions(options, num_answered), *_notes_of_attributes(options, users, items))
    return History(rows, categories, gathering.set_aside(), notes, users, items)


def _note_of_impressions(options: ReadOptions, num_answered: int) -> Iterator[str]:
    if num_answered and options.answer_window_ms is not None:
        window_s = options.answer_window_ms / 1e3
        yield f"{num_answered} impressions are left out: an act of the same user and item answers each of them within {window_s:g} s"


def _notes_of_attributes(options: ReadOptions, users: Versions, items: Versions) -> Iterator[str]:
    for name, path, versions in (("users", options.users, users), ("items", options.items, items)):
        if len(versions):
            source = without_credentials(f"{path}") if path is not None else "the events (known from the second after each)"
            yield f"{source}: attributes of {len(versions)} {name} in {len(versions.rows) - 1} versions"


def parts_of(found: FoundFile, file: EventFile, spec: FeatureSpec, options: ReadOptions) -> Iterator[Part]:
    """Yield the batches of one file; raises EventFileError as `read_history`."""
    check_columns(found, file.names, spec, options.names)
    facts, at = None, 0
    if "time" in file.names:
        facts = facts_of((columns["time"] for columns in file.batches(["time"])), Place(found.path, options.names.of("time")))
    for columns in file.batches(file.names):
        part = read_part(found, columns, spec, options, first_row=at, facts=facts)
        yield part
        at += len(part.users)


def cut_by_time(rows: Sequence[Interaction], fraction: float) -> int:
    """Return how many of the events, in the order of time, are the oldest `fraction` of them; the cut splits no second.

    Where the second is a large one (a day, in a file that has only dates), it is cut at its nearer end (of both: the later one); all
    events are returned where there is no other second.
    """
    cut = round(len(rows) * fraction)
    if not 0 < cut < len(rows) or _second(rows[cut - 1]) < (second := _second(rows[cut])):
        return cut
    first = bisect_left(rows, second, hi=cut, key=_second)
    end = bisect_right(rows, second, lo=cut, key=_second)
    ends = [place for place in (end, first) if 0 < place < len(rows)]
    return min(ends, key=lambda place: abs(place - cut), default=len(rows))


def coarse_cut(num_rows: int, fraction: float, cut: int) -> str:
    """Return what to say of a cut that is far from what was asked for, since many events share a second; empty where it is near."""
    wanted = num_rows * fraction
    if abs(cut - wanted) <= max(_FAR_OFF * min(wanted, num_rows - wanted), 1.0):
        return ""
    return (
        f"the times are coarse: cut at {cut:,} of {num_rows:,} events instead of {round(wanted):,}, since no second (no day, where only "
        "dates are known) is split"
    )


def _second(row: Interaction) -> int:
    return row.time_ms // 1000


def remarks(history: History) -> Iterator[str]:
    """Yield what whoever trains should see: what the files were taken for, and what was set aside."""
    yield from history.notes
    for reason, (count, first) in history.set_aside.items():
        yield f"set aside: {count} events whose {reason} (the first: {first})"
