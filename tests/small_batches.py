"""A fixture for modules of tests that read files of events: each test runs as it is, and with batches, blocks and runs of a few rows."""

from __future__ import annotations

import pytest

from services.trainer.event_files import delimited, json_lines, load, ordered


@pytest.fixture(autouse=True, params=["batches as shipped", "batches of two rows"])
def batch_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "batches of two rows":
        shrink(monkeypatch, rows=2, text_bytes=128)


def shrink(monkeypatch: pytest.MonkeyPatch, *, rows: int, text_bytes: int) -> None:
    """Have files read, sorted and kept so many rows at a time; of CSV, so many bytes."""
    monkeypatch.setattr(load, "BATCH_ROWS", rows)
    monkeypatch.setattr(delimited, "BATCH_ROWS", rows)
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", text_bytes)
    monkeypatch.setattr(delimited, "_SCANNED_BYTES", max(text_bytes // 4, 3))
    monkeypatch.setattr(json_lines, "_BLOCK_ROWS", rows)
    monkeypatch.setattr(ordered, "PAGE_ROWS", rows)
    defaults = dict(ordered.WorkFolder.__init__.__kwdefaults__) | {"block_rows": 2 * rows, "fan_in": 3}
    monkeypatch.setattr(ordered.WorkFolder.__init__, "__kwdefaults__", defaults)
