from services.common.platform.ids import sample_id, sample_ids
from services.common.ranker.labels import keep_negative, keep_negatives

ITEMS = [f"item {number} é" for number in range(2_000)]


def test_ids_of_a_whole_request_equal_the_ids_one_by_one() -> None:
    assert sample_ids("request", ITEMS, 3).tolist() == [sample_id("request", item_id, 3) for item_id in ITEMS]
    assert sample_ids("request", [], 0).tolist() == []


def test_a_whole_request_is_thinned_as_its_items_one_by_one_and_at_the_stated_rate() -> None:
    identities = sample_ids("request", ITEMS, 0)
    for rate in (0.01, 0.16, 0.5, 1.0):
        kept = keep_negatives(identities, rate)
        assert kept.tolist() == [keep_negative(int(identity), rate) for identity in identities]
        assert abs(kept.mean() - rate) < 4 * (rate * (1 - rate) / len(ITEMS)) ** 0.5 + 1e-9
