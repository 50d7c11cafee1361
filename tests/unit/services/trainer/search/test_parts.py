"""The three parts of a search: in time, without a look ahead."""

from __future__ import annotations

import pytest

from services.common.platform.errors import ConfigurationError
from services.common.ranker.states import Interaction
from services.trainer.event_files.history import History
from services.trainer.search.parts import divide
from tests.learning import CATEGORIES, interactions

pytestmark = pytest.mark.ml


def test_trials_get_nothing_of_the_last_part() -> None:
    last = [Interaction("new", "only-later", "rating", 5.0, 10_000_000 + second) for second in range(0, 40_000, 1000)]
    history = History([*interactions(360), *last], dict(CATEGORIES) | {"only-later": ("odd",)})
    parts = divide(history, validation=0.2, test=0.1)
    assert (len(parts.trials.learned), len(parts.trials.scored), len(parts.final.learned), len(parts.final.scored)) == (280, 80, 360, 40)
    assert [*parts.trials.learned, *parts.trials.scored] == parts.final.learned == interactions(360)
    seen = {one.item_id for one in interactions(360)}
    assert set(parts.trials.categories) == seen and "only-later" in parts.final.categories
    assert set(parts.trials.first_items) == {one.item_id for one in parts.trials.learned}


@pytest.mark.parametrize(("validation", "test", "named"), [(0.01, 0.2, "validation"), (0.2, 0.01, "test"), (0.49, 0.49, "learned")])
def test_a_part_that_would_say_nothing_is_refused(validation: float, test: float, named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"are left for the {named} part; it takes 20"):
        divide(History(interactions(400), dict(CATEGORIES)), validation=validation, test=test)
