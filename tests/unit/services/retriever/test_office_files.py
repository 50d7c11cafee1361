"""Facts planted in forty office files: is each in one passage, with the names of its row and column, and with the path to it?"""

from __future__ import annotations

from collections import Counter

from services.retriever.core.documents import ChunkLimits, PassageText, texts_of
from services.retriever.extract import extract
from tests.office_facts import OfficeFile
from tests.office_files import forty

LIMITS = ChunkLimits(max_tokens=200, overlap_tokens=40)
BAR = 0.95


def passages(file: OfficeFile) -> list[PassageText]:
    return list(texts_of(file.name, *extract(file.name, file.raw), LIMITS))


def test_nearly_all_facts_of_forty_office_files_are_in_one_passage_with_their_names():
    planted, found, missed = Counter[str](), Counter[str](), []
    for file in forty():
        kind = file.name.rpartition(".")[2]
        cut = passages(file)
        for fact in file.facts:
            planted[kind] += 1
            if any(all(text in one.text for text in fact.text) and all(title in one.title for title in fact.title) for one in cut):
                found[kind] += 1
            else:
                missed.append((file.name, fact))
        shown = "\n".join(f"{one.title}\n{one.text}" for one in cut)
        assert [text for text in file.absent if text in shown] == [], file.name
        assert [text for text in file.once if shown.count(text) != 1] == [], file.name
    print(*(f"{kind}: {found[kind]} of {planted[kind]}" for kind in planted), f"all: {found.total() / planted.total():.3f}", sep="\n")
    assert len(planted) == 4 and min(planted.values()) > 100
    assert all(found[kind] >= BAR * planted[kind] for kind in planted), missed[:20]
