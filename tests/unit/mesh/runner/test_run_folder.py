from __future__ import annotations

import os

import pytest

from services.mesh.runner import run_folder
from services.mesh.runner.run_folder import RunFolder, prepare_folder
from services.mesh.runner.state import MeshState


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def run_once(folder: RunFolder, learned: str, *, was_up: bool) -> None:
    prepare_folder(folder, forget_volumes=True)
    (folder.path / "volumes" / "tables").write_text(learned)
    folder.write(MeshState(phase="down" if was_up else "failed", was_up=was_up))


def test_what_the_last_run_learned_survives_the_starts_that_fail_after_it(folder):
    run_once(folder, "older", was_up=True)
    run_once(folder, "learned", was_up=True)
    run_once(folder, "", was_up=False)
    run_once(folder, "", was_up=False)
    assert (folder.path / "volumes.previous" / "tables").read_text() == "learned"
    prepare_folder(folder, forget_volumes=True)
    assert (folder.path / "volumes.previous" / "tables").read_text() == "learned"
    assert list((folder.path / "volumes").iterdir()) == []


def test_volumes_stay_when_the_log_outlived_the_run(folder):
    run_once(folder, "learned", was_up=False)
    prepare_folder(folder, forget_volumes=False)
    assert (folder.path / "volumes" / "tables").read_text() == "learned"
    assert not (folder.path / "volumes.previous").exists()


def test_a_start_whose_plan_fails_counts_as_one_that_failed(folder):
    run_once(folder, "learned", was_up=True)
    prepare_folder(folder, forget_volumes=True)
    prepare_folder(folder, forget_volumes=True)
    assert (folder.path / "volumes.previous" / "tables").read_text() == "learned"


def test_volumes_of_a_log_that_outlives_the_mesh_are_put_aside_and_never_deleted(folder):
    prepare_folder(folder, forget_volumes=False)
    (folder.path / "volumes" / "tables").write_text("learned")
    folder.write(MeshState(phase="failed", was_up=False))
    prepare_folder(folder, forget_volumes=True)
    assert (folder.path / "volumes.previous" / "tables").read_text() == "learned"
    for _ in range(2):
        folder.write(MeshState(phase="down", was_up=True))
        prepare_folder(folder, forget_volumes=True)
    assert (folder.path / "volumes.durable" / "tables").read_text() == "learned"


def test_the_folder_names_who_holds_it_whatever_an_earlier_run_said(folder):
    assert folder.holder() is None
    for _ in range(2):
        with folder.lock():
            folder.write(MeshState(phase="up", supervisor_pid=1))
            assert folder.holder() == os.getpid()
        folder.lock(as_supervisor=False).close()
    assert folder.holder() is None


def test_a_supervisor_of_an_older_program_is_found_by_what_it_wrote(folder, monkeypatch):
    monkeypatch.setattr(run_folder, "_WITHOUT_NAME_S", 0.05)
    with folder.lock(as_supervisor=False):
        folder.write(MeshState(phase="up", supervisor_pid=7))
        assert folder.holder() == 7
