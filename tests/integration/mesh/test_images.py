"""The package set of the light image, made anew in a plain environment: what it runs loads from the wheel, outside this tree."""

from pathlib import Path

import pytest

from services.mesh.images import reproduce

pytestmark = [pytest.mark.deep]


def test_everything_that_the_light_image_runs_loads_in_its_package_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["light", "--folder", str(tmp_path)]) == 0
    assert "light: 0 problems" in capfd.readouterr().err
