"""Settings of the tuner."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.platform.settings import ArtifactStoreSettings, BaseServiceSettings, KafkaSettings, MlflowSettings, ModelSettings


class TunerSettings(BaseServiceSettings, KafkaSettings, ArtifactStoreSettings, ModelSettings, MlflowSettings):
    """When the language model is tuned, how, and what an adapter must hold before it answers."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_TUNER_")

    port: int = Field(50062, ge=0, le=65535)
    """Port of the gRPC API; 0 takes a free one."""
    router_target: str = Field("127.0.0.1:50051", min_length=1)
    """gRPC target of the router: candidates are judged by what users would get."""
    llm_admin_target: str = Field("127.0.0.1:50059", min_length=1)
    """gRPC target of the llm's private port."""
    prompt_assembler_target: str = Field("127.0.0.1:50061", min_length=1)
    """gRPC target of the prompt assembler."""
    trainer_target: str = Field("127.0.0.1:50054", min_length=1)
    """gRPC target of the trainer, which owns control.v1."""
    evaluations_dir: Path = Path("build/evaluations")
    """Folder of the evaluation files, TASK.yaml; a task without one is not tuned."""
    work_dir: Path = Path("build/tuner")
    """Folder of the trainings: job, progress, log and adapter of each."""
    keep_trainings: int = Field(5, ge=1)
    """Older folders in it are deleted."""
    replay_file: Path | None = None
    """JSON lines with question, context and answer, to replay in place of questions about the catalogue. A task's own file comes first:
    TASK.replay.jsonl beside its evaluation file.
    """
    auto: bool = True
    """Whether a tune begins by itself when enough new demonstrations are there. StartTune works either way."""
    check_interval_ms: int = Field(2_000, ge=100)
    """How often that is looked at."""
    min_demonstrations: int = Field(20, ge=1)
    """A task with fewer is not tuned."""
    min_new_demonstrations: int = Field(20, ge=1)
    """An automatic tune waits for so many since the last one of its task began that the gate decided about."""
    max_user_share: float = Field(0.5, gt=0, le=1)
    """Of these two numbers, so much can come from one user; 1: all of it, where one person teaches."""
    failed_retry_ms: int = Field(300_000, ge=1_000)
    """A task whose tune failed is tuned again by itself after so long; twice as long after each further failure, up to 64 times."""
    max_demonstrations: int = Field(5_000, ge=1)
    """Of a task's demonstrations the newest so many are kept."""
    max_tasks: int = Field(100, ge=1)
    """Examples of further tasks are not taken."""
    max_catalog_items: int = Field(20_000, ge=1)
    """Of the catalogue, so many are read for replay."""

    lora_rank: int = Field(16, ge=1, le=512)
    """Rank of each layer's update."""
    lora_alpha: int = Field(32, ge=1)
    """The update is scaled by alpha / rank."""
    lora_modules: str = Field("q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", min_length=1)
    """Comma-separated names of the linear layers that get one. On attention alone the demo's facts were not learned."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate of AdamW."""
    warm_up_steps: int = Field(10, ge=1)
    """Steps up to it; afterwards it falls in a line to zero."""
    batch_size: int = Field(8, ge=1)
    """Examples a step."""
    num_passes: float = Field(5.0, gt=0)
    """How often a demonstration is shown, on average; the number of steps follows from it."""
    num_steps: int = Field(0, ge=0)
    """Steps of every tune; 0: as num_passes, min_steps and max_steps say."""
    min_steps: int = Field(40, ge=1)
    """Fewest steps of a tune, however few demonstrations there are."""
    max_steps: int = Field(600, ge=1)
    """Most steps of a tune; beyond, demonstrations are shown less often."""
    replay_share: float = Field(0.25, ge=0, lt=1)
    """Share of each batch that is made of context-answering examples, rounded to whole examples."""
    replay_examples: int = Field(200, ge=1)
    """How many different ones there are to draw from."""
    max_example_tokens: int = Field(1_024, ge=16)
    """Longest example, prompt and answer; a tune with a longer one fails."""
    train_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen base. auto: bfloat16 where the processor or a GPU computes in it, else float32, which is many times faster there."""
    train_threads: int = Field(0, ge=0)
    """Threads of the training; 0 takes every core. Equal seeds give equal adapters for equal threads on one kind of processor."""
    train_timeout_ms: int = Field(3_600_000, ge=1_000)
    """A training that takes longer is ended, and its tune has failed."""
    seed: int = Field(0, ge=0)
    """Of batches, replay and the first weights."""

    max_answer_tokens: int = Field(40, ge=1)
    """Of each answer that is judged."""
    concurrency: int = Field(8, ge=1)
    """Prompts that are asked for at once while the examples of a tune are collected."""
    judge_concurrency: int = Field(1, ge=1)
    """Questions that are asked at once while judging. Above 1 it is faster, and an answer may differ from one time to the next:
    batches round otherwise.
    """
    load_timeout_ms: int = Field(120_000, ge=1_000)
    """How long the llm may take to load and warm, or to drain and unload, an adapter."""
    live_timeout_ms: int = Field(15_000, ge=100)
    """How long to wait until the router answers with a new live adapter, before saying so in the log."""
    call_attempts: int = Field(5, ge=1)
    """Calls to other services are tried so often, with pauses of 0.5 s, 1 s, 2 s, …"""
    mlflow_retry_ms: int = Field(10_000, ge=100)
    """How often MLflow is tried again while it is down."""

    min_task_right: float = Field(0.5, gt=0, lt=1)
    """Adapter gate: it must be shown that more than this share of the task slice is answered right."""
    task_margin: float = Field(0.05, gt=0, lt=1)
    """Adapter gate: by how much that share may be below the live adapter's. The smaller the margin, the more questions are needed
    to show it.
    """
    context_margin: float = Field(0.05, gt=0, lt=1)
    """Adapter gate: by how much answers from given or retrieved passages may be below the base's and the live adapter's."""
    general_margin: float = Field(0.1, gt=0, lt=1)
    """Adapter gate: the same of the general slice, for tasks that have one."""
    safety_margin: float = Field(0.03, gt=0, lt=1)
    """Adapter gate: the same of the safety slice, for tasks that have one."""
    likelihood_margin: float = Field(0.05, gt=0, lt=1)
    """Adapter gate: by how much the mean probability of a reference answer's token may be below the live adapter's."""
    false_accept: float = Field(0.05, gt=0, lt=0.5)
    """Adapter gate: with this probability at most an adapter passes that is worse by a margin."""
    false_refuse: float = Field(0.05, gt=0, lt=0.5)
    """Adapter gate: with this probability at most an adapter is refused that is as good. (It may also stay undecided.)"""
    first_questions: int = Field(32, ge=1)
    """Adapter gate: of each slice, asked before the first decision; each further batch is half as many as were asked before."""
    max_questions: int = Field(2_000, ge=1)
    """Adapter gate: most questions of one slice that are asked."""
    min_replay_share: float = Field(0.2, ge=0, le=1)
    """Adapter gate: least share of context-answering examples among those trained on."""
    max_update_norm: float = Field(30.0, gt=0)
    """Adapter gate: largest Euclidean norm of one layer's update. Those of sound tunes of the default model were below 4."""
