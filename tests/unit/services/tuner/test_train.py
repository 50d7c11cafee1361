"""The training on a model of a few thousand weights, made here."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.common.events.chat import Message
from services.common.language.adapter_manifest import hash_content
from services.common.platform.errors import InvalidInput
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.tuner import train
from services.tuner.dataset import TrainingExample
from services.tuner.job import HyperParameters, Job, read_result, read_steps, write_job
from services.tuner.lora_norms import update_norms
from services.tuner.train import Encoded
from services.tuner.training_process import TrainingProcess
from tests.tuner_fakes import NAME

pytestmark = pytest.mark.ml

WORDS = ["how", "long", "may", "I", "keep", "it", "nine", "days", "where", "green", "box"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<end>", "<|user|>", "<|assistant|>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def job_of(base: str, *, seed: int = 0, max_tokens: int = 32, num_steps: int = 30) -> Job:
    def example(question: str, answer: str) -> TrainingExample:
        return TrainingExample(messages=(Message("user", question),), answer=answer, is_replay=False)

    return Job(
        base_folder=base,
        base_name="Tiny",
        hyper_parameters=HyperParameters(
            rank=4,
            alpha=8,
            target_modules=("q_proj", "v_proj", "up_proj", "down_proj"),
            learning_rate=2e-2,
            num_steps=num_steps,
            warm_up_steps=3,
            batch_size=2,
            max_tokens=max_tokens,
            dtype="float32",
            num_threads=1,
            seed=seed,
        ),
        examples=(example("how long may I keep it", "nine days"), example("where", "green box")),
        batches=((0, 1),) * num_steps,
    )


def trained(folder, job: Job):
    write_job(folder, job)
    return train.run(folder)


def test_a_training_learns_its_answers_and_leaves_an_adapter_that_names_the_base(base, tmp_path):
    result = trained(tmp_path, job_of(base))
    assert result == read_result(tmp_path)
    assert result.losses[0] > 1.0
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert [step.loss for step in read_steps(tmp_path)] == list(result.losses)
    assert result.num_answer_tokens == 30 * 6
    assert len(result.norms) == 2 * 4
    assert all(0 < norm < 100 for norm in result.norms.values())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("Tiny", 4, 8)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


async def test_the_process_trains_as_the_tuner_starts_it(base, tmp_path):
    steps = []
    process = TrainingProcess(tmp_path, keep=1, timeout_s=120.0)
    result = await process.train(NAME, job_of(base, num_steps=3), steps.append)
    assert [step.loss for step in steps] == list(result.losses)
    assert hash_content(process.adapter_folder(NAME)).startswith("sha256:")


def test_the_process_ends_when_the_tuner_is_gone(base, tmp_path):
    write_job(tmp_path, job_of(base, num_steps=100_000))
    command = [sys.executable, "-m", "services.tuner.train", "--end-with-stdin", str(tmp_path)]
    paths = os.pathsep.join([str(REPOSITORY_ROOT), str(REPOSITORY_ROOT / "protos" / "gen")])
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY_ROOT, env={**os.environ, "PYTHONPATH": paths}) as process:
        while not read_steps(tmp_path):
            assert process.poll() is None
            time.sleep(0.1)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 1
    assert not (tmp_path / "result.json").exists()


def test_the_norm_of_an_update_is_that_of_the_product(base, tmp_path):
    result = trained(tmp_path, job_of(base, num_steps=3))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, norm in result.norms.items():
        down, up = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
        assert norm == pytest.approx(float(torch.linalg.norm(2.0 * up @ down)), rel=1e-4)
    assert update_norms(tmp_path / "adapter") == pytest.approx(result.norms, rel=1e-4)


def test_equal_seeds_give_equal_adapters_and_other_seeds_others(base, tmp_path):
    files = []
    for number, seed in enumerate((1, 1, 2)):
        trained(tmp_path / str(number), job_of(base, seed=seed, num_steps=3))
        files.append((tmp_path / str(number) / "adapter" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_an_example_that_is_too_long_is_left_out_and_never_cut(base, tmp_path):
    result = trained(tmp_path / "both", job_of(base, max_tokens=10, num_steps=3))
    assert result.left_out == (0,)
    assert result.num_answer_tokens == 3 * 3
    job = job_of(base, num_steps=3)
    trained(tmp_path / "one", replace(job, batches=((1,),) * 3))
    files = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("both", "one")]
    assert files[0] == files[1]


def test_demonstrations_that_are_all_too_long_cannot_be_trained_on(base, tmp_path):
    with pytest.raises(InvalidInput, match="each of the 2 demonstrations is longer than 5 tokens"):
        trained(tmp_path, job_of(base, max_tokens=5))


def test_what_people_write_holds_no_control_token(base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    rude = TrainingExample(messages=(Message("user", "where <end> where"),), answer="green <end> box", is_replay=False)
    ids = train.encode(tokenizer, [rude])[0].ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id


def test_groups_pad_little_and_lose_nobody():
    rows = [Encoded([0] * length, 1) for length in (50, 10, 52, 12, 14, 20)]
    groups = train.groups_of_like_length(rows)
    assert [[len(row.ids) for row in group] for group in groups] == [[10, 12, 14], [20], [50, 52]]


def test_the_loss_does_not_depend_on_how_a_batch_is_grouped(base):
    job = job_of(base)
    from transformers import AutoTokenizer

    encoded = train.encode(AutoTokenizer.from_pretrained(base), job.examples)
    model = train.make_model(job)
    together = float(train.answer_loss(model, encoded).detach())
    apart = sum(float(train.answer_loss(model, [row]).detach()) for row in encoded)
    assert together == pytest.approx(apart, rel=1e-5)


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero():
    rates = [train.rate_at(step, 3, 9) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])


def test_weights_of_nan_have_a_norm_of_nan(base):
    model = train.make_model(job_of(base))
    parameter = next(parameter for name, parameter in model.named_parameters() if "lora_A" in name)
    parameter.data.fill_(float("nan"))
    assert any(math.isnan(norm) for norm in train.update_norms(model, job_of(base).hyper_parameters).values())


def test_an_emulated_dtype_is_never_chosen_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert train.base_dtype("auto", "cpu") == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert train.base_dtype("auto", "cpu") == "bfloat16"
    assert train.base_dtype("auto", "cuda") == "bfloat16"
    assert train.base_dtype("float32", "cuda") == "float32"
