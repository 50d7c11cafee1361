"""The bench: which rows run, what is written of them, and what is said when one cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.bench.__main__ import main
from loadtests.bench.registry import ROWS
from loadtests.bench.row import NotHere, Options, Result, Row


def fast(options: Options) -> list[Result]:
    ours = [2.0, 1.0, 3.0, 10.0, 1.5][: options.repeats]
    return [
        Result(name="fast", unit="ms", ours=ours, peer=[4.0, 4.0, 5.0, 3.0, 8.0]),
        Result(name="many", unit="requests/s", ours=[30.0] * 5, peer=[10.0] * 5, more_is_better=True),
        Result(name="alone", unit="ms", ours=[0.5] * 5),
    ]


def nowhere(options: Options) -> list[Result]:
    raise NotHere("install the peer")


FAKES = (Row("fast things", ("fast", "many", "alone"), fast), Row("another", ("other",), nowhere))


def test_a_file_holds_medians_and_how_many_times_better_and_a_table_the_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repeats", "5"], rows=FAKES, folder=tmp_path) == 0
    written = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert written == {
        "fast": {"name": "fast", "ours": 2.0, "peer": 4.0, "ratio": 2.0, "unit": "ms", "n": 5},
        "many": {"name": "many", "ours": 30.0, "peer": 10.0, "ratio": 3.0, "unit": "requests/s", "n": 5},
        "alone": {"name": "alone", "ours": 0.5, "peer": None, "ratio": None, "unit": "ms", "n": 5},
    }
    said = capsys.readouterr()
    assert "| fast | 2.000 (1.000 to 10.000) | 4.000 (3.000 to 8.000) | 2.00 | ms | 5 |" in said.out
    assert "not measured: other: install the peer" in said.err


def test_a_row_that_is_asked_for_and_cannot_be_measured_fails_the_run(tmp_path: Path) -> None:
    assert main(["other"], rows=FAKES, folder=tmp_path) == 1
    assert main(["many"], rows=FAKES, folder=tmp_path) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["faster"], "no row is called faster; there are fast, many, alone, other"),
        (["--repeats", "4"], "4 are too few"),
        (["--against", "no/such/folder"], "no/such/folder has no .venv"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments, rows=FAKES, folder=tmp_path)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_rows_have_names_of_their_own_and_those_that_compare_checkouts_ask_for_one() -> None:
    names = [name for row in ROWS for name in row.names]
    assert len(names) == len(set(names))
    with pytest.raises(NotHere, match="make bench AGAINST=FOLDER"):
        ROWS[0].measure(Options())
