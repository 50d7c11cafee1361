"""The exported embedder under onnxruntime, against what torch computed for the same texts when it was exported."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from services.common.platform.errors import ConfigurationError
from services.retriever.embedder import Embedder
from services.retriever.embedder_files import read_stamp

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def embedder(embedder_folder) -> Embedder:
    return Embedder(embedder_folder, num_threads=1, batch_size=4)


def test_embeddings_equal_those_of_torch(embedder, embedder_folder):
    probes = read_stamp(embedder_folder).probes
    assert len(probes) >= 3
    for probe in probes:
        (vector_D,) = embedder.embed([probe.text])
        np.testing.assert_allclose(vector_D, probe.embedding, atol=1e-5)


def test_a_text_has_the_same_embedding_in_any_batch_and_at_any_place(embedder):
    texts = [f"{'word ' * size}number {size}" for size in (300, 1, 40, 7, 0, 90, 2)]
    together_ND = embedder.embed(texts)
    alone_ND = np.concatenate([embedder.embed([text]) for text in texts])
    assert together_ND.shape == (7, 384) and together_ND.dtype == np.float32
    np.testing.assert_allclose(together_ND, alone_ND, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together_ND, axis=1), 1.0, atol=1e-5)


def test_meaning_is_nearer_than_words(embedder):
    query_D, same_D, other_D = embedder.embed(
        ["When must I bring back a movie?", "Films are returned within seven days.", "When must I feed a cat?"]
    )
    assert query_D @ same_D > query_D @ other_D


def test_no_text_and_an_empty_text_are_embedded_too(embedder):
    assert embedder.embed([]).shape == (0, 384)
    assert np.isfinite(embedder.embed([""])).all()


@pytest.mark.parametrize("damage", ["probe", "model", "nothing there"])
def test_an_embedder_that_does_not_compute_what_it_should_is_refused(embedder_folder, tmp_path, damage):
    folder = tmp_path / "embedder"
    if damage != "nothing there":
        shutil.copytree(embedder_folder, folder)
    if damage == "probe":
        stamp = json.loads((folder / "embedder.json").read_text())
        stamp["probes"][0]["text"] = "Another text"
        (folder / "embedder.json").write_text(json.dumps(stamp))
    elif damage == "model":
        (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(
        ConfigurationError, match={"probe": "cosine", "model": "cannot be loaded", "nothing there": "export_embedder"}[damage]
    ):
        Embedder(folder, num_threads=1, batch_size=4)
