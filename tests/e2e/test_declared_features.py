"""A team's own features once, on the mesh in small: profile, catalogue and context, answer, exposure, feedback, what was learned of it.

The mesh's spec declares one of each side (tests/e2e/small_mesh.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from tunemesh.catalog.v1.catalog_item_pb2 import CatalogItem
from tunemesh.events.v1.exposure_pb2 import Exposure

from loadtests.movielens import load_films
from services.common.events.attributes import Attributes
from services.common.events.envelope import headers_for
from services.common.events.topics import CATALOG
from services.common.events.wire.attributes import write_attributes
from services.common.platform.kafka_producer import send_each
from services.common.platform.kafka_record import Record
from services.common.ranker.exposure_block import decode
from services.common.ranker.features import Float16Array
from tests.e2e.commands import CommandFailed, tunemesh
from tests.e2e.small_mesh import FILMS, Prediction, SmallMesh
from tests.e2e.users import Users
from tests.waiting import eventually
from tunemesh_client import EventProducer, InvalidRequest, Profile

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(400)]

USER, PROFILE = "declared-user", {"city": "Oslo", "age": 31}
CONTEXT = {"hour": 21, "budget": 10.0, "page": "home"}
# One film has no price.
PRICES: Mapping[str, Attributes] = {
    film: {"price": price} for film, price in zip(FILMS, (1.0, 9.99, 10.0, 10.01, 500, 0.5), strict=False)
} | {FILMS[6]: {}}


def write_prices(small: SmallMesh) -> None:
    """Write what the catalogue says of the films once more, with prices."""
    films, records = load_films(), []
    for film, price in PRICES.items():
        item = CatalogItem(item_id=film, title=films[film].title, categories=films[film].categories)
        write_attributes(price, item.typed_attributes)
        records.append(
            Record(CATALOG.name, film.encode(), item.SerializeToString(), headers_for(CatalogItem.DESCRIPTOR.full_name, "/team"))
        )
    assert send_each(small.kafka, records, client_id="team") == [None] * len(records)


def planned(small: SmallMesh, items: Sequence[str]) -> tuple[Float16Array, Float16Array]:
    """Return the declared columns of user and items, computed as a batch computes them: beside another event, with all films' parts."""
    plan, films = small.spec.plan, list(PRICES)
    events = plan.events([{"city": "Rome"}, PROFILE], [{}, CONTEXT])
    rows = np.asarray([films.index(item_id) for item_id in items], dtype=np.int64)
    outputs = plan.run(events, plan.items([PRICES[film] for film in films]), np.ones_like(rows), rows)
    return outputs.user_GU[1], outputs.items_BF


def logged(small: SmallMesh, exposure: Exposure) -> tuple[Float16Array, Float16Array]:
    """Return the declared columns that an exposure holds."""
    features, plan = decode(exposure.features_block, small.spec), small.spec.plan
    return features.user_U[-len(plan.user_columns) :], features.items_NF[:, -len(plan.item_columns) :]


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer, made when the mesh knew profile and prices."""

    exposure: Exposure
    before: Prediction


@pytest.fixture(scope="module")
def asked(small: SmallMesh, users: Users) -> Asked:
    with EventProducer(small.kafka, source="/team") as events:
        events.put_profile(Profile(USER, PROFILE))
    write_prices(small)

    def ask() -> Exposure:
        answer = users.recommend(USER, list(PRICES), context=CONTEXT)
        assert answer.degraded_reason == ""
        return eventually(lambda: small.exposure(answer.request_id))

    def knows_all(exposure: Exposure) -> bool:
        user_U, items_NF = logged(small, exposure)
        is_priced = items_NF[:, small.spec.plan.item_columns.index("price.absent")] == 0
        return bool(user_U[small.spec.plan.user_columns.index("city=Oslo")]) and int(is_priced.sum()) == len(PRICES) - 1

    exposure = eventually(ask, knows_all, every_s=0.5)
    return Asked(exposure, small.predict(exposure))


def test_the_exposure_holds_what_the_plan_computes_in_a_batch_to_the_bit(small: SmallMesh, asked: Asked) -> None:
    assert sorted(asked.exposure.item_ids) == sorted(PRICES)
    for is_logged, is_planned in zip(logged(small, asked.exposure), planned(small, asked.exposure.item_ids), strict=True):
        assert is_logged.dtype == is_planned.dtype == np.float16
        assert is_logged.tobytes() == np.ascontiguousarray(is_planned).tobytes()


def test_context_is_logged_as_it_came_and_why_names_the_declared_columns(small: SmallMesh, asked: Asked) -> None:
    assert set(asked.exposure.context) == set(CONTEXT)
    report = eventually(lambda: tunemesh(small.run_dir, "why", asked.exposure.request_id), not_yet=(CommandFailed,))
    assert (report["user_features"]["city=Oslo"], report["user_features"]["city=Rome"]) == (1.0, 0.0)
    affordable = {row["item_id"]: row["features"]["afford"] for row in report["items"]}
    assert affordable == {film: float(price.get("price", 11.0) <= 10.0) for film, price in PRICES.items()}  # type: ignore[operator]


def test_feedback_about_it_is_learned_and_changes_what_the_same_features_are_worth(small: SmallMesh, users: Users, asked: Asked) -> None:
    rated = asked.exposure.item_ids[-1]
    receipt = users.rate(asked.exposure.request_id, USER, rated)
    eventually(users.status, lambda status: status.watermark_ms >= receipt.accepted_at_ms and not status.publishing_refused)

    def has_learned(now: Prediction) -> bool:
        return now.version != asked.before.version and now.like[rated] > asked.before.like[rated]

    eventually(lambda: small.predict(asked.exposure), has_learned)


def test_an_attribute_of_another_type_than_the_spec_reads_is_refused_by_name(users: Users) -> None:
    with pytest.raises(InvalidRequest, match="hour"):
        users.recommend(USER, FILMS[:5], context={"hour": "in the evening"})
