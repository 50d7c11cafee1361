"""Tables of the operator's commands where their output is no terminal."""

from __future__ import annotations

import pytest

from services.mesh.operate import screen


def test_names_of_features_are_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a_feature_with_a_long_name_{number}" for number in range(5)]
    screen.print_rows([{"feature": name, **{f"item-{column}": 0.123456 for column in range(12)}} for name in names], empty="")
    said = capsys.readouterr().out
    assert all(name in said for name in names) and "…" not in said
