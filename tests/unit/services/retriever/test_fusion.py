import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retriever.core.fusion import reciprocal_rank_fusion


def test_scores_are_those_of_the_paper():
    fused = reciprocal_rank_fusion([["a", "b"], ["b", "c"]], limit=10)
    assert [name for name, _ in fused] == ["b", "a", "c"]
    assert dict(fused) == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62})


def test_equal_scores_go_to_the_earlier_ranking():
    assert [name for name, _ in reciprocal_rank_fusion([["v"], ["w"]], limit=2)] == ["v", "w"]


def test_the_limit_cuts_and_no_ranking_gives_nothing():
    assert [name for name, _ in reciprocal_rank_fusion([["a", "b", "c"]], limit=2)] == ["a", "b"]
    assert reciprocal_rank_fusion([], limit=5) == [] and reciprocal_rank_fusion([[], []], limit=5) == []


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), max_size=4))
def test_an_id_that_is_first_everywhere_is_first(rankings):
    with_winner = [["winner", *ranking] for ranking in rankings]
    if with_winner:
        assert reciprocal_rank_fusion(with_winner, limit=1)[0][0] == "winner"
