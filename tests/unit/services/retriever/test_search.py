from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.common.platform.errors import InvalidInput, Unavailable
from services.retriever.core.search import Hit, NoIndex, Searcher


def hits(*names: str) -> list[Hit]:
    return [Hit(passage_id=name, title=name.upper(), text=f"text of {name}") for name in names]


class FakeIndex:
    version = "e1.7"
    embedder_version = "e1"

    def __init__(self) -> None:
        self.near: Sequence[Hit] | Exception = hits("a", "b", "c")
        self.worded: Sequence[Hit] | Exception = hits("c", "d")
        self.calls: list[tuple[object, str, int]] = []

    async def by_vector(self, vector: str, *, source: str, limit: int) -> Sequence[Hit]:
        return self._answer(self.near, vector, source, limit)

    async def by_words(self, query: str, *, source: str, limit: int) -> Sequence[Hit]:
        return self._answer(self.worded, query, source, limit)

    def _answer(self, answer: Sequence[Hit] | Exception, what: object, source: str, limit: int) -> Sequence[Hit]:
        self.calls.append((what, source, limit))
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeEmbedder:
    is_there = True

    async def embed_query(self, query: str, *, embedder_version: str) -> str:
        if not self.is_there or embedder_version != "e1":
            raise Unavailable("no embedder")
        return f"vector of {query}"


@pytest.fixture
def index() -> FakeIndex:
    return FakeIndex()


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def searcher(index, embedder) -> Searcher[str]:
    return Searcher(lambda: index, embedder, lambda: True)


async def test_both_halves_are_asked_and_fused_best_first(searcher, index):
    answer = await searcher.search("late fees", limit=3, source="files")
    assert [found.hit.passage_id for found in answer.found] == ["c", "a", "b"]
    assert answer.found[0].score > answer.found[1].score > answer.found[2].score
    assert (answer.index_version, answer.degraded_reason) == ("e1.7", "")
    assert sorted(call[0] for call in index.calls) == ["late fees", "vector of late fees"]
    assert all(source == "files" and limit >= 3 * 4 for _, source, limit in index.calls)


async def test_a_limit_of_zero_means_four(searcher, index):
    index.near = hits(*"abcdefgh")
    assert len((await searcher.search("x", limit=0, source="")).found) == 4


async def test_without_an_embedder_words_alone_are_searched_and_the_answer_says_so(searcher, embedder):
    embedder.is_there = False
    answer = await searcher.search("x", limit=4, source="")
    assert [found.hit.passage_id for found in answer.found] == ["c", "d"]
    assert answer.degraded_reason == "vector_search_unavailable"


async def test_without_words_the_vectors_answer_and_say_so(searcher, index):
    index.worded = Unavailable("broken")
    answer = await searcher.search("x", limit=4, source="")
    assert [found.hit.passage_id for found in answer.found] == ["a", "b", "c"]
    assert answer.degraded_reason == "word_search_unavailable"


async def test_with_neither_half_the_search_is_unavailable(searcher, index):
    index.near = index.worded = Unavailable("disk gone")
    with pytest.raises(Unavailable, match="disk gone"):
        await searcher.search("x", limit=4, source="")


async def test_an_error_that_nobody_foresaw_is_not_taken_for_a_degraded_answer(searcher, index):
    index.near = KeyError("a bug")
    with pytest.raises(KeyError):
        await searcher.search("x", limit=4, source="")


@pytest.mark.parametrize(("source", "reason"), [("", "catalog_unavailable"), ("catalog", "catalog_unavailable"), ("files", "")])
async def test_a_catalogue_that_was_not_read_is_said_where_it_matters(index, embedder, source, reason):
    assert (await Searcher(lambda: index, embedder, lambda: False).search("x", limit=4, source=source)).degraded_reason == reason


async def test_before_anything_is_indexed_the_search_is_unavailable(embedder):
    with pytest.raises(NoIndex):
        await Searcher(lambda: None, embedder, lambda: True).search("x", limit=4, source="")


@pytest.mark.parametrize(
    ("query", "limit", "source", "field"),
    [("", 4, "", "query"), (" \n", 4, "", "query"), ("é" * 1025, 4, "", "query"), ("x", 51, "", "limit"), ("x", 4, "web", "source")],
)
async def test_a_request_out_of_range_is_refused_and_the_field_is_named(searcher, index, query, limit, source, field):
    with pytest.raises(InvalidInput, match=f"^{field}"):
        await searcher.search(query, limit=limit, source=source)
    assert index.calls == []
