"""When the recommender says that it serves."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from services.recommender import server as wiring


@pytest.mark.parametrize("has_catalogue", [True, False])
async def test_it_serves_behind_the_warm_up_which_is_no_work_of_the_event_loop(monkeypatch, caplog, has_catalogue: bool) -> None:
    said: list[tuple[str, bool]] = []

    def note(what: str) -> None:
        said.append((what, threading.current_thread() is threading.main_thread()))

    class Server:
        async def set_serving(self, is_serving: bool) -> None:
            note(f"serving {is_serving}")

    class Follower:
        def wait_ready(self, timeout_s: float) -> bool:
            note("catalogue")
            return has_catalogue

    monkeypatch.setattr(wiring, "warm_up_tables", lambda: note("warm"))
    server: Any = Server()
    follower: Any = Follower()
    await wiring.get_ready(server, follower, 1_000)
    assert said == [("warm", False), ("catalogue", False), ("serving True", True)]
    assert ("catalog_unavailable" in caplog.text) is not has_catalogue
