from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from services.retriever.core.documents import ChunkLimits, FileText, texts_of
from services.retriever.extract import extract
from services.retriever.files import DocumentFolder, FileLimits
from services.retriever.left_out import FILE_NAME, LeftOut

CHUNKS = ChunkLimits(max_tokens=200, overlap_tokens=40)


def folder_at(path: Path, *, max_files: int = 100, max_bytes: int = 1000, max_batch: int = 100) -> DocumentFolder:
    return DocumentFolder(
        path,
        FileLimits(max_files=max_files, max_bytes=max_bytes),
        CHUNKS,
        max_batch=max_batch,
        read=lambda name, raw: FileText(tuple(texts_of(name, *extract(name, raw), CHUNKS))),
        left_out=LeftOut(path.parent / FILE_NAME),
    )


def write(path: Path, text: str = "Hello.", mtime_s: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if mtime_s is not None:
        os.utime(path, (mtime_s, mtime_s))
    return path


def ids(changes) -> list[str]:
    return [document.document_id for document in changes.documents]


@pytest.fixture
def folder(tmp_path) -> DocumentFolder:
    return folder_at(tmp_path)


def test_files_of_known_kinds_are_found_in_all_folders_and_others_are_passed_over(folder, tmp_path):
    for name in ("b.txt", "a.md", "deep/er/c.HTML", "picture.png", ".hidden.md", ".git/d.md"):
        write(tmp_path / name)
    assert sorted(ids(folder.look({}))) == ["a.md", "b.txt", "deep/er/c.HTML"]
    assert folder.refused == {}


def test_a_file_is_read_once_and_again_when_it_changed(folder, tmp_path):
    write(tmp_path / "a.txt", "One.", mtime_s=1)
    (document,) = folder.look({}).documents
    indexed = {"a.txt": document.content_hash}
    assert ids(folder.look(indexed)) == []
    write(tmp_path / "a.txt", "Two.", mtime_s=2)
    (changed,) = folder.look(indexed).documents
    assert changed.content_hash != document.content_hash and [text.text for text in changed.texts] == ["Two."]


def test_a_file_that_was_only_touched_or_that_the_index_has_already_is_not_indexed_again(tmp_path):
    write(tmp_path / "a.txt", "One.", mtime_s=1)
    (document,) = folder_at(tmp_path).look({}).documents
    after_a_restart = folder_at(tmp_path)
    assert ids(after_a_restart.look({"a.txt": document.content_hash})) == []
    write(tmp_path / "a.txt", "One.", mtime_s=2)
    assert ids(after_a_restart.look({"a.txt": document.content_hash})) == []


def test_a_file_that_is_gone_is_deleted(folder, tmp_path):
    write(tmp_path / "a.txt")
    changes = folder.look({"a.txt": "h", "gone.txt": "h", "catalog-like:1": "h"})
    assert sorted(changes.gone) == ["catalog-like:1", "gone.txt"]
    (tmp_path / "a.txt").unlink()
    assert folder.look({"a.txt": "h"}).gone == ("a.txt",)


def test_a_folder_that_is_not_there_deletes_nothing_and_is_read_once_it_is(tmp_path, caplog):
    folder = folder_at(tmp_path / "docs")
    for _ in range(3):
        assert folder.look({"a.txt": "h"}).gone == ()
    assert caplog.text.count("is not there") == 1
    write(tmp_path / "docs" / "b.txt")
    changes = folder.look({"a.txt": "h"})
    assert ids(changes) == ["b.txt"] and changes.gone == ("a.txt",)


def test_an_empty_folder_deletes_nothing_unless_its_files_were_seen_to_go(folder, tmp_path, caplog):
    for _ in range(3):
        assert folder.look({"a.txt": "h"}).gone == ()
    assert caplog.text.count("they stay until it has a file") == 1
    write(tmp_path / "b.txt")
    assert folder.look({"a.txt": "h"}).gone == ("a.txt",)
    (tmp_path / "b.txt").unlink()
    assert folder.look({"b.txt": "h"}).gone == ("b.txt",)


def test_an_empty_mount_point_is_told_from_an_emptied_folder(folder, tmp_path):
    write(tmp_path / "a.txt")
    folder.look({})
    folder._device = -1  # as if another disk had been there
    (tmp_path / "a.txt").unlink()
    assert folder.look({"a.txt": "h"}).gone == ()


def failing(monkeypatch, function: str, name: str, number: int) -> None:
    """Let a function of `os` or `Path` fail for paths of a name."""
    owner = os if function == "scandir" else Path
    real = getattr(owner, function)

    def fails(path, *arguments, **options):
        if Path(path).name == name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(owner, function, fails)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_listed_keeps_what_it_holds_and_is_named(folder, tmp_path, monkeypatch, caplog, number):
    write(tmp_path / "sub" / "a.txt")
    write(tmp_path / "b.txt")
    failing(monkeypatch, "scandir", "sub", number)
    changes = folder.look({"sub/a.txt": "h", "subway.txt": "h", "gone.txt": "h"})
    assert (ids(changes), sorted(changes.gone)) == (["b.txt"], ["gone.txt", "subway.txt"])
    assert folder.refused == {"sub": f"it is a folder that cannot be listed: {os.strerror(number)}"}
    assert os.strerror(number) in caplog.text
    monkeypatch.undo()
    assert ids(folder.look({"sub/a.txt": "h", "b.txt": "h"})) == ["sub/a.txt"] and folder.refused == {}


def test_a_documents_folder_that_cannot_be_listed_deletes_nothing(folder, tmp_path, monkeypatch):
    write(tmp_path / "b.txt")
    failing(monkeypatch, "scandir", tmp_path.name, errno.EACCES)
    assert folder.look({"a.txt": "h", "sub/b.txt": "h"}).gone == ()


@pytest.mark.parametrize("function", ["open", "lstat"])
def test_what_a_disk_does_not_give_now_stays_and_is_tried_again_and_what_nobody_may_read_goes(folder, tmp_path, monkeypatch, function):
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name)
    failing(monkeypatch, function, "a.txt", errno.EIO)
    changes = folder.look({"a.txt": "h"})
    assert (ids(changes), changes.gone) == (["b.txt"], ())
    assert folder.refused == {"a.txt": "it cannot be read: Input/output error"}
    monkeypatch.undo()
    assert ids(folder.look({"a.txt": "h", "b.txt": "h"})) == ["a.txt"] and folder.refused == {}
    failing(monkeypatch, function, "a.txt", errno.EACCES)
    os.utime(tmp_path / "a.txt", (5, 5))
    assert folder.look({"a.txt": "h"}).gone == ("a.txt",)


def test_a_disk_that_does_not_answer_is_a_folder_that_is_not_there(folder, tmp_path, monkeypatch, caplog):
    write(tmp_path / "b.txt")
    failing(monkeypatch, "stat", tmp_path.name, errno.ENOTCONN)
    assert folder.look({"a.txt": "h"}).gone == ()
    assert "is not there" in caplog.text


def test_a_name_that_is_not_utf_8_is_refused_and_shown_escaped(folder, tmp_path):
    write(tmp_path / os.fsdecode(b"caf\xe9.txt"))
    assert ids(folder.look({})) == []
    assert folder.refused == {"caf\\xe9.txt": "its name is not UTF-8"}


def test_refused_files_are_named_with_their_reason_and_leave_the_index(folder, tmp_path):
    write(tmp_path / "big.txt", "x" * 1001)
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    write(tmp_path / "target.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "target.txt")
    changes = folder.look({"big.txt": "h", "binary.md": "h"})
    assert ids(changes) == ["target.txt"] and sorted(changes.gone) == ["big.txt", "binary.md"]
    assert "1001 bytes" in folder.refused["big.txt"]
    assert "not UTF-8" in folder.refused["binary.md"]
    assert "link" in folder.refused["link.txt"]


def test_a_refusal_stays_said_until_the_file_can_be_read(folder, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    folder.look({})
    assert folder.look({}).documents == () and "a.txt" in folder.refused
    write(tmp_path / "a.txt", "Fine now.", mtime_s=5)
    assert ids(folder.look({})) == ["a.txt"] and folder.refused == {}


def test_a_file_whose_permissions_changed_is_read_again(folder, tmp_path):
    path = write(tmp_path / "a.txt", mtime_s=1)
    assert ids(folder.look({})) == ["a.txt"] and ids(folder.look({})) == []
    path.chmod(0o600)
    assert ids(folder.look({})) == ["a.txt"]


def test_files_over_the_number_are_refused(tmp_path):
    for number in range(5):
        write(tmp_path / f"{number}.txt")
    folder = folder_at(tmp_path, max_files=3)
    assert ids(folder.look({})) == ["0.txt", "1.txt", "2.txt"]
    assert sorted(folder.refused) == ["3.txt", "4.txt"] and "more than 3 files" in folder.refused["3.txt"]


def test_a_look_reads_a_bounded_number_and_says_that_there_is_more(tmp_path):
    for number in range(5):
        write(tmp_path / f"{number}.txt")
    folder = folder_at(tmp_path, max_batch=2)
    looks = [folder.look({}) for _ in range(3)]
    assert [ids(look) for look in looks] == [["0.txt", "1.txt"], ["2.txt", "3.txt"], ["4.txt"]]
    assert [look.more for look in looks] == [True, True, False]
    assert all(look.gone == () for look in looks)


def test_what_was_found_but_not_indexed_is_found_again(folder, tmp_path):
    write(tmp_path / "a.txt")
    folder.look({})
    folder.forget()
    assert ids(folder.look({})) == ["a.txt"]


def test_paths_do_not_lead_out_of_the_folder(tmp_path):
    write(tmp_path / "secret.txt")
    inside = tmp_path / "docs"
    inside.mkdir()
    (inside / "out").symlink_to(tmp_path)
    assert ids(folder_at(inside).look({})) == []
