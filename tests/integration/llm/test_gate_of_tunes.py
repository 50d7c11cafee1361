"""Tunes of the tiny model from their demonstrations to the gate's verdict: trained in a process, loaded by vLLM, judged by its answers.

Three adapters: one that the gate lets through, one tuned without replay, which forgets to read, and one tuned on shuffled answers, which
learns nothing that is asked. All by the limits that the tuner has by default. The same of the packaged model, through router and prompt
assembler: tests/integration/tuner/test_gate_on_measured_slices.py.
"""

from __future__ import annotations

import pytest

from services.common.language.aliases import BASE_MODEL
from services.common.language.base_model import base_hash
from tests import tiny_loop, tiny_model
from tests.integration.llm.tune_bench import Bench

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.timeout(400)]


@pytest.fixture
def bench(llm, tmp_path) -> Bench:
    return Bench(llm, tmp_path)


async def test_an_adapter_that_learned_its_task_and_still_reads_goes_live(bench):
    status = await bench.tune(tiny_loop.DEMONSTRATIONS)
    assert (status.phase, status.refusals, status.error) == ("live", [], "")
    assert bench.alias.target == status.adapter
    assert status.metrics["task.base"] == 0.0
    assert status.metrics["task.candidate"] >= tiny_loop.MIN_RIGHT
    assert status.metrics["context.base"] == status.metrics["context.candidate"] == 1.0
    verdict = bench.llm.store.verdict(status.adapter)
    assert verdict is not None and verdict.accepted and verdict.compared_with == BASE_MODEL
    assert (verdict.prompt_version, verdict.base_hash) == ("answer@v1", base_hash(str(tiny_model.tiny_model())))
    assert bench.llm.states() == {status.adapter: "WARM"}
    bench.llm.unload(status.adapter)


async def test_an_adapter_tuned_without_replay_is_refused_because_it_no_longer_reads(bench):
    status = await bench.tune(tiny_loop.DEMONSTRATIONS, replay_share=0.0)
    assert (status.phase, bench.alias.target, bench.llm.states()) == ("refused", BASE_MODEL, {})
    assert status.metrics["task.candidate"] >= tiny_loop.MIN_RIGHT, "it must fail for want of reading, not of learning"
    # How much it forgets depends on the processor: sums in another order, and half or a third of the contexts are read wrong.
    assert status.metrics["context.candidate"] < 0.8 < status.metrics["context.base"]
    assert any(sentence.startswith("answers from given context are worse than the base's") for sentence in status.refusals)
    assert any("(replay), below the least share of 0.20" in sentence for sentence in status.refusals)
    verdict = bench.llm.store.verdict(status.adapter)
    assert verdict is not None
    assert (verdict.accepted, list(verdict.refusals)) == (False, status.refusals)


async def test_an_adapter_tuned_on_shuffled_answers_goes_not_live_because_it_learned_nothing(bench):
    status = await bench.tune(tiny_loop.shuffled())
    # Twelve questions say clearly that it is not good, and hardly that it is bad.
    assert status.phase in ("refused", "undecided")
    assert (bench.alias.target, bench.llm.states()) == (BASE_MODEL, {})
    assert any("the task slice is answered right in" in sentence for sentence in status.refusals)
    assert not any("(replay)" in sentence for sentence in status.refusals)
