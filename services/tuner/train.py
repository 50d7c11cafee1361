"""Train one LoRA in a process of its own: `python -m services.tuner.train FOLDER` (ml environment).

Reads FOLDER/job.json and writes what `services.tuner.job` describes; exit code 1 and FOLDER/error.txt when it cannot. Its memory
goes back to the system with the process, and a crash is one failed tune. Knows nothing of Kafka, gRPC or the adapter gate.
"""

from __future__ import annotations

import argparse
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.language.control_tokens import control_tokens_of, harmless
from services.common.platform import openmp
from services.common.platform.errors import InvalidInput
from services.common.platform.secrets import Redactor, guard_output, secrets_in
from services.tuner.dataset import TrainingExample, batches_without
from services.tuner.job import (
    ADAPTER_FOLDER,
    HyperParameters,
    Job,
    Step,
    TrainingResult,
    append_step,
    read_job,
    write_error,
    write_result,
)

_NICENESS = 10
_MAX_GRADIENT_NORM = 1.0
# An example that is more than so much longer than the shortest of its group begins a new group: padding costs as much as text.
_MAX_PADDING = 1.4


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens: `ids` is prompt and answer, the answer begins at `answer_start`."""

    ids: list[int]
    answer_start: int


def main() -> None:
    """Train what the folder in the last argument describes."""
    guard_output(os.environ)
    parser = argparse.ArgumentParser(prog="python -m services.tuner.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="with job.json; the adapter is left there")
    parser.add_argument("--end-with-stdin", action="store_true", help="end at once when standard input closes: the tuner is gone")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.end_with_stdin:
        threading.Thread(target=_end_with_stdin, name="end-with-stdin", daemon=True).start()
    # Answering goes before learning when both want the processor.
    os.nice(_NICENESS)
    openmp.spin_shortly()  # before torch is imported
    try:
        run(folder)
    except Exception as error:
        write_error(folder, Redactor(secrets_in(os.environ))(f"{type(error).__name__}: {error}"))
        raise


def _end_with_stdin() -> None:
    # Not through sys.stdin: a thread that waits inside its buffer makes the interpreter abort at the end of the process.
    while os.read(0, 4_096):
        pass
    os._exit(1)


def run(folder: Path) -> TrainingResult:
    """Train, and leave the adapter and the result in `folder`.

    Raises:
        InvalidInput: job.json is not there or malformed, or every demonstration is longer than `max_tokens`.
    """
    job = read_job(folder)
    # Not read by this process' libraries before they are imported; every file is local.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers import AutoTokenizer

    if job.hyper_parameters.num_threads:
        torch.set_num_threads(job.hyper_parameters.num_threads)
    torch.manual_seed(job.hyper_parameters.seed)
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(job.base_folder)
    encoded = encode(tokenizer, job.examples)
    left_out = too_long(job, encoded)
    batches = batches_without(job.batches, left_out)
    model = make_model(job)
    losses = train(model, job.hyper_parameters, [[encoded[row] for row in batch] for batch in batches], folder)
    norms = update_norms(model, job.hyper_parameters)
    save(model, job, folder / ADAPTER_FOLDER)
    result = TrainingResult(
        losses=tuple(losses),
        seconds=time.monotonic() - started,
        norms=norms,
        num_answer_tokens=sum(len(encoded[row].ids) - encoded[row].answer_start for batch in batches for row in batch),
        left_out=tuple(sorted(left_out)),
    )
    write_result(folder, result)
    return result


def encode(tokenizer: Any, examples: Sequence[TrainingExample]) -> list[Encoded]:
    """Return each example's tokens: the chat template's prompt, exactly as the server makes it, then the answer and the end of its turn."""
    control_tokens = control_tokens_of(tokenizer)
    encoded = []
    for example in examples:
        messages = [{"role": turn.role, "content": harmless(turn.content, control_tokens)} for turn in example.messages]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(harmless(example.answer, control_tokens), add_special_tokens=False)["input_ids"]
        encoded.append(Encoded([*prompt_ids, *answer_ids, tokenizer.eos_token_id], len(prompt_ids)))
    return encoded


def too_long(job: Job, encoded: Sequence[Encoded]) -> set[int]:
    """Return the rows that cannot be trained on: one overlong demonstration must not keep its task from learning the others.

    Raises:
        InvalidInput: no demonstration is left.
    """
    limit = job.hyper_parameters.max_tokens
    rows = {row for row, one in enumerate(encoded) if len(one.ids) > limit}
    demonstrations = {row for row, example in enumerate(job.examples) if not example.is_replay}
    if demonstrations <= rows:
        raise InvalidInput(f"each of the {len(demonstrations)} demonstrations is longer than {limit} tokens, which is all that is allowed")
    return rows


def make_model(job: Job) -> Any:
    """Return the frozen base with a fresh LoRA, on a GPU when there is one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    hyper = job.hyper_parameters
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = base_dtype(hyper.dtype, device)
    base = AutoModelForCausalLM.from_pretrained(job.base_folder, dtype=getattr(torch, dtype)).to(device)
    base.config.use_cache = False
    config = LoraConfig(
        r=hyper.rank,
        lora_alpha=hyper.alpha,
        lora_dropout=0.0,
        target_modules=list(hyper.target_modules),
        task_type="CAUSAL_LM",
    )
    # peft keeps the LoRA in fp32 whatever the base has.
    model = get_peft_model(base, config)
    model.train()
    return model


def base_dtype(wanted: str, device: str) -> str:
    """Return the dtype of the frozen base: as wanted, or for "auto" bfloat16 where it is computed in, else float32.

    A processor without bfloat16 instructions emulates them: a step took 130 s in place of 7 s on one with AVX2 only.
    """
    import torch

    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16"
    found = torch.cpu.get_capabilities()
    return "bfloat16" if found.get("avx512_bf16") or found.get("amx_bf16") else "float32"


def train(model: Any, hyper: HyperParameters, batches: Sequence[Sequence[Encoded]], folder: Path) -> list[float]:
    """Take one optimiser step a batch; return the losses and append each step to the progress file."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=hyper.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, hyper.warm_up_steps, len(batches)))
    losses = []
    for step, rows in enumerate(batches, start=1):
        started = time.monotonic()
        num_targets = sum(len(row.ids) - row.answer_start for row in rows)
        loss = 0.0
        for group in groups_of_like_length(rows):
            group_loss = answer_loss(model, group) / num_targets
            group_loss.backward()
            loss += float(group_loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        append_step(folder, Step(step=step, loss=loss, gradient_norm=norm, seconds=time.monotonic() - started))
    return losses


def rate_at(step: int, warm_up_steps: int, num_steps: int) -> float:
    """Return the share of the learning rate at `step` (from 0): up in a line over the warm-up, then down in a line to 0 at the end."""
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    return max(0.0, (num_steps - step) / max(1, num_steps - warm_up_steps))


def groups_of_like_length(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    """Split a batch so that little is padded; the gradients of the groups add up to the batch's."""
    groups: list[list[Encoded]] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if groups and len(row.ids) <= _MAX_PADDING * len(groups[-1][0].ids):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def answer_loss(model: Any, rows: Sequence[Encoded]) -> Any:
    """Return the summed cross-entropy of the answers' tokens, a scalar with a graph.

    Only positions that predict an answer token pass through the output layer: for a small model that layer is a fifth of the work.
    """
    import torch

    length = max(len(row.ids) for row in rows)
    ids_BL = torch.zeros((len(rows), length), dtype=torch.long)
    mask_BL = torch.zeros((len(rows), length), dtype=torch.long)
    predicts_BL = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids_BL[index, : len(row.ids)] = torch.tensor(row.ids)
        mask_BL[index, : len(row.ids)] = 1
        predicts_BL[index, row.answer_start - 1 : len(row.ids) - 1] = True
    targets_N = ids_BL.roll(-1, dims=1)[predicts_BL]
    device = next(model.parameters()).device
    causal = model.get_base_model()
    hidden_BLD = causal.model(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)).last_hidden_state
    logits_NV = causal.lm_head(hidden_BLD[predicts_BL.to(device)]).float()
    return torch.nn.functional.cross_entropy(logits_NV, targets_N.to(device), reduction="sum")


def update_norms(model: Any, hyper: HyperParameters) -> dict[str, float]:
    """Return the Euclidean norm of each layer's update, alpha / rank · B·A, by layer name; without building the product."""
    import torch

    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters() if "lora_" in name}
    norms = {}
    for name, down_RI in weights.items():
        if ".lora_A." not in name:
            continue
        up_OR = weights[name.replace(".lora_A.", ".lora_B.")]
        # |BA|² = trace(AᵀBᵀBA) = sum of (BᵀB) ∘ (AAᵀ)
        squared = float(torch.sum((up_OR.T @ up_OR) * (down_RI @ down_RI.T)))
        # Rounding can make a zero slightly negative; NaN stays NaN, for the adapter gate to see.
        norms[name.split(".lora_A.")[0]] = hyper.alpha / hyper.rank * math.sqrt(0.0 if squared < 0 else squared)
    return norms


def save(model: Any, job: Job, folder: Path) -> None:
    """Write the adapter; its configuration names the base by name, not by a path of this machine."""
    model.peft_config["default"].base_model_name_or_path = job.base_name
    model.save_pretrained(str(folder), save_embedding_layers=False)
    readme = folder / "README.md"
    # peft's template of a model card, with nothing filled in.
    readme.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
