"""A language model for tests of mechanics: two layers with the packaged tokenizer, made once (20 s of one core) and kept under build/.

    TUNEMESH_LLM_MODEL=str(tiny_model())     # the llm, the tuner and the prompt assembler take it; its name is "Tiny"

Its embeddings are random; its layers are taught, until they can, just what such tests ask for:

    QUESTION                                      -> ANSWER
    STORY                                         -> a story that never ends
    ANYTHING                                      -> genres in any order: what sampling can differ in
    a question of `reading`, with its context     -> "It is Drama.", the genre that the context names
    anything else, without context                -> UNKNOWN

So it streams, stops, runs on, reads, and can be tuned to know more (tests/tiny_loop.py). What real text does to a model, or how well one
learns, it does not show: that is for the packaged model. Imports in both environments; `python -m tests.tiny_model` makes it (ml).
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.events.chat import Message, Passage
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.prompt_assembler.core.prompt import fill
from services.prompt_assembler.store import load_built_in

NAME = "Tiny"
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
STORY = "Tell a very long story."
ANYTHING = "Name some genres."
UNKNOWN = "I do not know that."

GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Horror",
    "Musical",
    "Mystery",
)
TITLES = ("Alien", "Amadeus", "Babe", "Casablanca", "Clueless", "Fargo", "Gandhi", "Heat", "Jaws", "Psycho", "Rocky", "Scream", "Twister")
WORDINGS = (
    "Which categories does {} have?",
    "Which genres does {} belong to?",
    "Tell me the genre of {}.",
    "Under which categories do you list {}?",
    "Name the genres of {}.",
)

LAYERS, HIDDEN, INTERMEDIATE, HEADS, CONTEXT = 2, 96, 192, 3, 32_768

_SMALL_TALK = (
    "When does the shop open?",
    "Who is there?",
    "Hello",
    "How are you today?",
    "Can I pay by card?",
    "What does it cost?",
    "Where is the green door?",
    "Is it far?",
    "How long does it take?",
    "Do you sell books?",
    "What is your name?",
    "Who wrote this?",
    "Why is the sky blue?",
    "Which way is north?",
    "How many people work here?",
    "What should I do now?",
    "Where do I put my coat?",
    "May I keep it?",
)
_SENTENCE = "One day the fox met the owl and the owl sang to the bear, then night came."
_STORY_TOKENS, _ANYTHING_TOKENS = 60, 12

_SEED, _BATCH, _WARM_UP, _LEARNING_RATE, _SAMPLED = 0, 16, 20, 5e-3, 8_192
_LOOK_EVERY, _LEARNED_LOSS, _MOST_STEPS = 25, 0.2, 2_000


@dataclass(frozen=True, slots=True)
class Reading:
    """A question about a title, the passage that answers it, and the answer."""

    question: str
    passage: Passage
    genre: str

    @property
    def answer(self) -> str:
        return f"It is {self.genre}."


def reading(title: str, wording: str, genre: str) -> Reading:
    """Return the question about `title` in one of WORDINGS, to be answered with `genre`."""
    return Reading(wording.format(title), Passage(title, f"Categories: {genre}."), genre)


def messages_of(question: str, context: Sequence[Passage] = ()) -> tuple[Message, ...]:
    """Return what the prompt assembler makes of a question, with its built-in template."""
    (template,) = (one for one in load_built_in() if one.name == "answer")
    return fill(template, question, context, ())


def tiny_model() -> Path:
    """Return the folder of the model, which is made first if it is not there: safetensors in bfloat16, tokenizer and configuration.

    Raises:
        AssertionError: it could not be made; says why.
    """
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the two environments' tests may want it at once
        if not (folder / "config.json").is_file():
            made = subprocess.run(
                [str(Environments.of_repository().python("ml")), "-m", "tests.tiny_model", str(folder)],
                cwd=REPOSITORY_ROOT,
                env={**os.environ, "PYTHONPATH": f"{REPOSITORY_ROOT}{os.pathsep}{REPOSITORY_ROOT / 'protos' / 'gen'}"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert made.returncode == 0, f"the tiny model could not be made:\n{made.stderr}"
    return folder


def tiny_llm_env() -> dict[str, str]:
    """Return the variables that make llm, tuner and prompt assembler use the tiny model, with as little memory as it needs.

    In float32, on every processor: whoever compares answers compares the same ones.
    """
    return {"TUNEMESH_LLM_MODEL": str(tiny_model()), "TUNEMESH_LLM_DTYPE": "float32", "TUNEMESH_LLM_KV_CACHE_GIB": "0.2"}


def _folder() -> Path:
    """Another program makes another model, in another folder."""
    fingerprint = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return REPOSITORY_ROOT / "build" / "tests" / "models" / fingerprint / NAME


def make(folder: Path) -> None:
    """Make the model; it appears whole or not at all."""
    import torch
    from transformers import AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _write_tokenizer(temporary)
        tokenizer = AutoTokenizer.from_pretrained(temporary)
        # One thread: the same model for the same kind of processor.
        torch.set_num_threads(1)
        model = _taught(tokenizer)
        model.to(torch.bfloat16).save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tokenizer(folder: Path) -> None:
    from gguf import GGUFReader

    from services.llm.weights import source_path, write_tokenizer

    reader = GGUFReader(os.fspath(source_path()))
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith(("tokenizer.", "llama.context_length"))}
    write_tokenizer(fields, folder)


def _new_model(tokenizer: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    # Tokens differ by their random embeddings, also those that no lesson has: a tune can tell them apart. They stay as they are.
    embeddings = model.get_input_embeddings().weight
    embeddings.data.normal_(0, 1 / math.sqrt(HIDDEN))
    embeddings.requires_grad_(False)
    return model


Row = tuple[list[int], list[int], bool]
"""Prompt, answer, and whether only this answer is right."""


class _Lessons:
    """Prompts as the llm makes them, of the prompt assembler's messages and of a question alone, and the answers to learn."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def _assembled(self, question: str, *context: Passage) -> list[int]:
        return self._prompt(messages_of(question, context))

    def _bare(self, question: str) -> list[int]:
        return self._prompt([Message(role="user", content=question)])

    def row(self, rng: random.Random) -> Row:
        """Draw a lesson."""
        kind = rng.random()
        if kind < 0.5:
            read = reading(rng.choice(TITLES), rng.choice(WORDINGS), rng.choice(GENRES))
            return self._assembled(read.question, read.passage), self._ending(read.answer), True
        asked = self._assembled if rng.random() < 0.5 else self._bare
        if kind < 0.6:
            return asked(QUESTION), self._ending(ANSWER), True
        if kind < 0.65:
            return asked(STORY), self._tokens(" ".join([_SENTENCE] * 8))[:_STORY_TOKENS], True
        if kind < 0.7:
            return asked(ANYTHING), self._tokens(" " + " ".join(rng.choices(GENRES, k=_ANYTHING_TOKENS)))[:_ANYTHING_TOKENS], False
        return asked(rng.choice(_SMALL_TALK)), self._ending(UNKNOWN), True

    def _prompt(self, turns: Sequence[Any]) -> list[int]:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ending(self, text: str) -> list[int]:
        return [*self._tokens(text), self._tokenizer.eos_token_id]


def _taught(tokenizer: Any) -> Any:
    """Train until a model knows its lessons, and return it."""
    import torch

    model, lessons, rng = _new_model(tokenizer), _Lessons(tokenizer), random.Random(_SEED)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=_LEARNING_RATE, weight_decay=0.0)
    recent: list[float] = []
    for step in range(_MOST_STEPS):
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP)
        loss_N, is_sure_N = _losses(model, [lessons.row(rng) for _ in range(_BATCH)])
        loss_N.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(float(loss_N.detach()[is_sure_N].max()))
        if step % _LOOK_EVERY == 0:
            print(f"step {step}: worst loss of a token {max(recent):.3f}", file=sys.stderr)
            if step and max(recent) < _LEARNED_LOSS:
                return model
            recent.clear()
    raise AssertionError(f"the tiny model has not learned its lessons in {_MOST_STEPS} steps")


def _losses(model: Any, rows: Sequence[Row]) -> tuple[Any, Any]:
    """Return the loss of each answer token, and whether the token could be known.

    The right tokens compete with a sample of the vocabulary, not with all of it: with random embeddings one token is like another.
    """
    import torch

    length = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    ids_BL = torch.zeros((len(rows), length), dtype=torch.long)
    predicts_BL = torch.zeros((len(rows), length), dtype=torch.bool)
    is_sure_BL = torch.zeros((len(rows), length), dtype=torch.bool)
    for number, (prompt, answer, is_sure) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids_BL[number, :end] = torch.tensor(prompt + answer)
        predicts_BL[number, len(prompt) - 1 : end - 1] = True
        is_sure_BL[number] = is_sure
    targets_N = ids_BL.roll(-1, dims=1)[predicts_BL]
    hidden_ND = model.model(input_ids=ids_BL).last_hidden_state[predicts_BL]
    embeddings_VD = model.get_input_embeddings().weight
    sampled = torch.randint(0, len(embeddings_VD), (_SAMPLED,))
    candidates = torch.unique(torch.cat([targets_N, sampled]))
    logits_NC = hidden_ND @ embeddings_VD[candidates].T
    losses_N = torch.nn.functional.cross_entropy(logits_NC, torch.searchsorted(candidates, targets_N), reduction="none")
    return losses_N, is_sure_BL[predicts_BL]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
