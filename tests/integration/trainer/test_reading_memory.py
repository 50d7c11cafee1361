"""Memory of reading a history does not follow its length: compared, within one run, with what the list of its events takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.bench_event_files import FORMATS, STREAMED, WHOLE, compare, growth_mib

pytestmark = [pytest.mark.ml, pytest.mark.deep]

ROWS, TIMES = 150_000, 4
SHARE = 0.5
"""Of what four times the rows add to the list of events, they may add so much to reading: 0.14 (Parquet) and 0.26 (CSV) were measured."""


@pytest.mark.parametrize("kind", FORMATS)
def test_four_times_the_rows_add_less_than_half_of_what_they_add_to_a_list(kind: str, tmp_path: Path) -> None:
    found = compare(tmp_path, kind, ROWS, TIMES)
    assert [one["events"] for how in found.values() for one in how.values()] == [ROWS, TIMES * ROWS] * 2
    assert growth_mib(found[WHOLE]) > 60, found
    assert growth_mib(found[STREAMED]) < SHARE * growth_mib(found[WHOLE]), found
