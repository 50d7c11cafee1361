"""Which files of the documents' folder are searched, refused or indexed in part: the command as typed, and what the status says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.mesh.__main__ import main
from services.mesh.operate.documents import status_lines
from tests.integration.mesh.operate_fakes import FakeParts

pytestmark = pytest.mark.integration

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def parts() -> Iterator[FakeParts]:
    started = FakeParts()
    yield started
    started.stop()


@pytest.fixture
def tunemesh(parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("TUNEMESH_MESH_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("TUNEMESH_OPERATE_RETRIEVER_TARGET", parts.target)

    def run(*words: str) -> tuple[int, str]:
        return main(list(words)), capsys.readouterr().out

    return run


def test_documents_names_the_files_that_cannot_be_searched_or_only_in_part(tunemesh: Run, parts: FakeParts) -> None:
    code, out = tunemesh("documents")
    assert code == 0 and "3 of catalog, 1,200 of files" in out and "no file is refused" in out and "no file is indexed in part" in out
    parts.refused_files = {"scan.pdf": "2 of its 2 pages are pictures [red]"}
    parts.incomplete_files = {"half.pdf": "page 3 is a picture without text"}
    code, out = tunemesh("documents")
    assert code == 0 and "pictures [red]" in out and "half.pdf" in out and "page 3 is a picture without text" in out
    code, out = tunemesh("documents", "--json")
    assert json.loads(out) == {
        "index_version": "e1.7",
        "passages": {"catalog": 3, "files": 1_200},
        "refused": parts.refused_files,
        "incomplete": parts.incomplete_files,
    }


def test_the_status_names_some_of_these_files_and_says_where_the_others_are(parts: FakeParts) -> None:
    assert list(status_lines(parts.target)) == []
    parts.refused_files = {f"{number}.doc": "save it as .docx" for number in range(7)}
    parts.incomplete_files = {"half.pdf": "page 3 is a picture"}
    assert list(status_lines(parts.target)) == [
        "documents: 7 refused",
        *(f"  {number}.doc: save it as .docx" for number in range(5)),
        "  … `tunemesh documents` names them all",
        "documents: 1 indexed in part",
        "  half.pdf: page 3 is a picture",
    ]
    parts.stop()
    (line,) = status_lines(parts.target)
    assert line.startswith("documents: not known: the retriever at 127.0.0.1:") and "nobody answers there" in line
