"""The index on a real LanceDB, with vectors made by hand."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import asdict
from unittest.mock import AsyncMock

import lancedb
import numpy as np
import pytest

from services.common.platform.errors import ConfigurationError, Unavailable
from services.retriever.core.documents import IndexedPassage, passage_text
from services.retriever.lance_index import LanceIndex

pytestmark = pytest.mark.integration

EMBEDDER = ("aaaa1111", 4)


def passage(name: str, text: str, *, source: str = "files", content_hash: str = "h1", number: int = 1) -> IndexedPassage:
    return IndexedPassage(
        passage_id=f"{name}#{number}",
        document_id=name,
        source=source,
        content_hash=content_hash,
        **asdict(passage_text(name, f"Title of {name}", text)),
    )


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def vectors(*rows: tuple[float, ...]) -> np.ndarray:
    return np.stack([unit(*row) for row in rows])


async def names(found) -> list[str]:
    return [hit.passage_id for hit in await found]


@pytest.fixture
async def index(tmp_path) -> AsyncIterator[LanceIndex]:
    index = LanceIndex(tmp_path / "index")
    index.take()
    await index.open(EMBEDDER)
    yield index
    index.close()


async def fill(index: LanceIndex) -> None:
    await index.put(
        [
            passage("a.md", "Late fees are two euros"),
            passage("it's.md", "Opening hours"),
            passage("catalog:1", "Categories: Drama", source="catalog"),
        ],
        vectors((1, 0, 0, 0), (0, 1, 0, 0), (0.9, 0.1, 0, 0)),
        ["a.md", "it's.md", "catalog:1"],
    )
    await index.publish()


async def test_passages_are_found_by_vector_and_by_words_and_by_source(index):
    await fill(index)
    found = index.snapshot
    assert await names(found.by_vector(unit(1, 0, 0, 0), source="", limit=2)) == ["a.md#1", "catalog:1#1"]
    assert await names(found.by_vector(unit(1, 0, 0, 0), source="catalog", limit=9)) == ["catalog:1#1"]
    assert await names(found.by_words("fee", source="", limit=9)) == ["a.md#1"], "words are stemmed"
    assert await names(found.by_words("TITLE drama", source="catalog", limit=9)) == ["catalog:1#1"]
    assert await names(found.by_words("nothing of that", source="", limit=9)) == []
    assert (found.num_passages, found.num_by_source) == (3, {"files": 2, "catalog": 1})


@pytest.mark.parametrize("query", ['"', "late AND (fees", "fees~2^5 +euros -x", "*", "' OR 1=1 --", "title:fees", "\\", "the and of"])
async def test_no_sign_in_a_query_has_a_meaning(index, query):
    await fill(index)
    for name in await names(index.snapshot.by_words(query, source="", limit=9)):
        assert name in ("a.md#1", "it's.md#1", "catalog:1#1")


async def test_a_document_is_replaced_with_all_of_its_passages_in_one_commit(index):
    await fill(index)
    two = [passage("a.md", "Late fees", number=number, content_hash="h2") for number in (1, 2)]
    await index.put(two, vectors((1, 0, 0, 0), (1, 0, 0, 0)), ["a.md"])
    assert (await index.publish()).num_by_source == {"files": 3, "catalog": 1}
    await index.put([passage("a.md", "Short now", content_hash="h3")], vectors((0, 0, 1, 0)), ["a.md"])
    assert (await index.publish()).num_by_source == {"files": 2, "catalog": 1}
    assert await index.hashes() == {"files": {"a.md": "h3", "it's.md": "h1"}, "catalog": {"catalog:1": "h1"}}


async def test_a_document_is_deleted_and_its_name_may_hold_a_quote(index):
    await fill(index)
    await index.put([], np.zeros((0, 4), dtype=np.float32), ["it's.md"])
    assert (await index.publish()).num_by_source == {"files": 1, "catalog": 1}
    assert await names(index.snapshot.by_words("opening hours", source="", limit=9)) == []


async def test_searches_see_nothing_before_it_is_published_and_a_version_never_changes(index):
    await fill(index)
    before = index.snapshot
    await index.put([passage("b.md", "Late fees as well")], vectors((1, 0, 0, 0)), ["b.md"])
    assert index.snapshot is before and len(await before.by_words("fees", source="", limit=9)) == 1
    after = await index.publish()
    assert after.version != before.version
    assert len(await after.by_words("fees", source="", limit=9)) == 2
    assert len(await before.by_words("fees", source="", limit=9)) == 1, "a search that began earlier ends on what it began with"
    assert (await index.publish()).version == after.version, "no change, no version"


async def test_after_a_restart_the_same_version_is_there(index, tmp_path):
    await fill(index)
    version = index.snapshot.version
    index.close()
    again = LanceIndex(tmp_path / "index")
    again.take()
    await again.open(EMBEDDER)
    assert again.snapshot.version == version and again.snapshot.num_passages == 3
    again.close()


async def test_many_commits_are_kept_in_order_and_found_all_along(index):
    for number in range(60):
        await index.put([passage(f"{number}.md", f"text number{number}")], vectors((1, number, 0, 0)), [f"{number}.md"])
        await index.publish()
    assert index.snapshot.num_passages == 60
    assert await names(index.snapshot.by_words("number37", source="", limit=1)) == ["37.md#1"]
    assert await names(index.snapshot.by_words("number59", source="", limit=1)) == ["59.md#1"]


async def test_an_index_without_vectors_answers_by_words_and_is_copied_once_there_is_an_embedder(tmp_path):
    index = LanceIndex(tmp_path / "index")
    index.take()
    await index.open(None)
    await index.put([passage("a.md", "Late fees"), passage("b.md", "Opening hours")], None, ["a.md", "b.md"])
    words_only = await index.publish()
    assert words_only.embedder_version == "" and await names(words_only.by_words("fees", source="", limit=9)) == ["a.md#1"]
    with pytest.raises(Unavailable):
        await words_only.by_vector(unit(1, 0, 0, 0), source="", limit=1)

    async def embed(texts):
        assert index.snapshot is words_only, "the old version answers until the new one is whole"
        return vectors(*[(1, 0, 0, 0) if "fees" in text else (0, 1, 0, 0) for text in texts])

    await index.copy_for(EMBEDDER, embed)
    assert index.snapshot.embedder_version == "aaaa1111" == index.embedder_version
    assert await names(index.snapshot.by_vector(unit(0, 1, 0, 0), source="", limit=1)) == ["b.md#1"]
    assert await names(index.snapshot.by_words("fees", source="", limit=9)) == ["a.md#1"]
    assert await index.hashes() == {"files": {"a.md": "h1", "b.md": "h1"}}
    assert [path.name for path in (tmp_path / "index").glob("*.lance")] == ["passages2_aaaa1111.lance"]
    index.close()


async def test_a_copy_that_was_not_finished_is_dropped_and_the_older_index_answers(tmp_path):
    index = LanceIndex(tmp_path / "index")
    index.take()
    await index.open(None)
    await index.put([passage("a.md", "Late fees")], None, ["a.md"])
    await index.publish()

    async def die(texts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await index.copy_for(EMBEDDER, die)
    index.close()
    again = LanceIndex(tmp_path / "index")
    again.take()
    await again.open(EMBEDDER)
    assert again.embedder_version == "" and again.snapshot.num_passages == 1
    assert [path.name for path in (tmp_path / "index").glob("*.lance")] == ["passages2_none.lance"]
    again.close()


async def test_a_damaged_table_is_made_anew(index, tmp_path):
    await fill(index)
    index.close()
    table = tmp_path / "index" / "passages2_aaaa1111.lance"
    for manifest in (table / "_versions").iterdir():
        manifest.write_bytes(b"damaged")
    again = LanceIndex(tmp_path / "index")
    again.take()
    await again.open(EMBEDDER)
    assert again.snapshot is None and await again.hashes() == {}
    await fill(again)
    assert again.snapshot.num_passages == 3
    again.close()


async def test_opening_is_tried_again_by_the_process_that_has_the_folder(tmp_path, monkeypatch):
    index, connect = LanceIndex(tmp_path / "index"), lancedb.connect_async
    index.take()
    monkeypatch.setattr(lancedb, "connect_async", AsyncMock(side_effect=OSError("the disk is full")))
    with pytest.raises(Unavailable, match="the disk is full"):
        await index.open(EMBEDDER)
    monkeypatch.setattr(lancedb, "connect_async", connect)
    await index.open(EMBEDDER)
    await fill(index)
    assert index.snapshot.num_passages == 3
    index.close()


async def test_a_table_of_another_format_is_dropped(index, tmp_path):
    await fill(index)
    index.close()
    shutil.move(tmp_path / "index" / "passages2_aaaa1111.lance", tmp_path / "index" / "passages1_aaaa1111.lance")
    again = LanceIndex(tmp_path / "index")
    again.take()
    await again.open(EMBEDDER)
    assert again.snapshot is None
    assert [path.name for path in (tmp_path / "index").glob("*.lance")] == ["passages2_aaaa1111.lance"]
    again.close()


async def test_two_processes_never_write_one_index(index, tmp_path):
    with pytest.raises(ConfigurationError, match="another retriever"):
        LanceIndex(tmp_path / "index").take()


async def test_a_folder_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        LanceIndex(tmp_path / "file" / "index").take()
