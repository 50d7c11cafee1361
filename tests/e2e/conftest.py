"""One mesh for all end-to-end tests of `make test`; it runs until the last of them is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.small_mesh import SmallMesh
    from tests.e2e.users import Users


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Iterator[SmallMesh]:
    """Both halves in small."""
    # Here, since the ml environment collects this file too and has none of the light one's clients.
    from tests.e2e.small_mesh import small_mesh

    with small_mesh(tmp_path_factory.mktemp("small"), mlflow_url=mlflow_url) as started:
        yield started


@pytest.fixture(scope="session")
def users(small: SmallMesh) -> Iterator[Users]:
    """Its users."""
    from tests.e2e.users import Users

    people = Users(small.mesh)
    yield people
    people.close()
