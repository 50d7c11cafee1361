"""Passages are cut in the reading process: they are the same as before that was so, and no part of it is the retriever's work."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from services.retriever.core.documents import FILES, ChunkLimits, CutDocument, PassageText, passages_of, texts_of
from services.retriever.extract import extract
from services.retriever.extraction import ExtractionLimits
from services.retriever.extraction_process import ExtractionProcess
from services.retriever.frames import Answer, read_answer, write_question
from services.retriever.outline import Unreadable
from tests.processor_time import quickest_s

CHUNKS = ChunkLimits(max_tokens=99, overlap_tokens=9)
LIMITS = ExtractionLimits(
    cpu_ms=600_000,
    cpu_setting="CPU_SETTING",
    memory_bytes=512 * 2**20,
    memory_setting="MEMORY_SETTING",
    unpacked_bytes=2**23,
    unpacked_setting="UNPACKED_SETTING",
)
# Of the passages of `corpus`, as they were when the retriever itself cut them.
RECORDED = 376, "b278671ed9c6af56d301ddae502325adc882b2ede9d26592bc72616da24660a6"


def corpus() -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of documents in several formats and scripts."""
    page = "".join(
        f"<section><h2>Rule {number}</h2><p>Films go back within <b>seven</b> days; every late day costs two euros, as rule {number} says. "
        f"Who loses a film pays its price!</p><table><tr><th>Fee</th><th>Euros</th></tr><tr><td>late {number}</td><td>{number}</td></tr>"
        "</table></section>"
        for number in range(60)
    )
    rules = "".join(
        f"## Rule {number}\n\nC++ and node.js, 1½ cups, 10⁶ times; see rule {number + 1}.\n\n- point {number}\n\n" for number in range(60)
    )
    chinese = "".join(f"数据库{number}备份每天凌晨三点开始，保存九天。逾期每天收费六角！真的吗？是的。\n\n" for number in range(200))
    mixed = "".join(
        f"バス{number}は九時に出ます。 ห้องสมุดเปิดทุกวัน ปิดวันจันทร์ 도서관은 {number}시에 엽니다. ＡＢＣ ﬁne\n\n" for number in range(100)
    )
    table = "fee,euros,since\n" + "".join(f"late {number},{number * 3},2024-01-{number % 28 + 1:02}\n" for number in range(300))
    long = " ".join(f"word{number}" for number in range(3_000)) + "\n\n" + "x" * 5_000 + "\n\n" + "字" * 3_000
    documents = {
        "a/page.html": page,
        "rules.md": "# Rules\n\n" + rules,
        "zh.txt": chinese,
        "mixed.txt": mixed,
        "fees.csv": table,
        "long.txt": long,
    }
    for name, text in documents.items():
        yield name, text.encode()


def large(num_bytes: int) -> bytes:
    line = "Film {} goes back within seven days; every late day costs two euros, as rule {} says.\n\n"
    return "".join(line.format(number, number) for number in range(num_bytes // 90)).encode()


@pytest.fixture
def reader() -> Iterator[ExtractionProcess]:
    process = ExtractionProcess(LIMITS, CHUNKS)
    yield process
    process.close()


def in_here(path: str, raw: bytes) -> tuple[PassageText, ...]:
    return tuple(texts_of(path, *extract(path, raw), CHUNKS))


def test_passages_are_those_of_before_bit_for_bit(reader):
    digest, count = hashlib.sha256(), 0
    for name, raw in corpus():
        texts = reader.read(name, raw).passages
        assert texts == in_here(name, raw)
        for passage in passages_of(CutDocument(document_id=name, source=FILES, texts=texts, content_hash="h")):
            count += 1
            for field in (passage.passage_id, passage.title, passage.text, passage.search_text, passage.words):
                digest.update(field.encode() + b"\0")
    assert (count, digest.hexdigest()) == RECORDED


def test_hardly_any_processor_time_of_the_retriever_goes_into_the_passages_of_a_large_file(reader):
    reader.read("a.md", b"Hello.")
    raw = large(2**19)
    here_s, reader_s = quickest_s(
        lambda: in_here("large.txt", raw), lambda: reader.read("large.txt", raw).passages, rounds=3, clock=time.process_time
    )
    assert reader_s < here_s / 10, (reader_s, here_s)


def test_a_large_file_has_many_answers_none_of_which_is_large():
    command = [sys.executable, "-m", "services.retriever.extraction", *(json.dumps(asdict(some)) for some in (LIMITS, CHUNKS))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert read_answer(process.stdout) == Answer()
        raw = large(2**20)
        write_question(process.stdin, "large.txt", raw)
        answers = [read_answer(process.stdout)]
        while answers[-1].more:
            answers.append(read_answer(process.stdout))
        process.stdin.close()
    sizes = [sum(len(passage.text) + len(passage.words) for passage in answer.passages) for answer in answers]
    assert len(answers) > 10 and max(sizes) < 256 * 1024
    assert tuple(passage for answer in answers for passage in answer.passages) == in_here("large.txt", raw)


def test_a_file_that_fails_after_some_passages_is_refused_whole_and_the_next_is_read():
    process = ExtractionProcess(LIMITS, CHUNKS, (sys.executable, "-m", "tests.odd_reader"))
    try:
        with pytest.raises(Unreadable, match="more than 512 MiB of memory"):
            process.read("fails_late.txt", b"")
        assert process.read("a.txt", b"Hello.").passages == in_here("a.txt", b"Hello.")
    finally:
        process.close()
