from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetTunerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTunerStatusResponse(_message.Message):
    __slots__ = ("base_model", "paused", "tasks", "running_tune_id")
    class TasksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TaskStatus
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TaskStatus, _Mapping]] = ...) -> None: ...
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TUNE_ID_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    paused: bool
    tasks: _containers.MessageMap[str, TaskStatus]
    running_tune_id: str
    def __init__(self, base_model: _Optional[str] = ..., paused: _Optional[bool] = ..., tasks: _Optional[_Mapping[str, TaskStatus]] = ..., running_tune_id: _Optional[str] = ...) -> None: ...

class TaskStatus(_message.Message):
    __slots__ = ("demonstrations", "judged", "waiting_for", "live")
    DEMONSTRATIONS_FIELD_NUMBER: _ClassVar[int]
    JUDGED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    demonstrations: int
    judged: int
    waiting_for: str
    live: str
    def __init__(self, demonstrations: _Optional[int] = ..., judged: _Optional[int] = ..., waiting_for: _Optional[str] = ..., live: _Optional[str] = ...) -> None: ...

class StartTuneRequest(_message.Message):
    __slots__ = ("task", "actor")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    task: str
    actor: str
    def __init__(self, task: _Optional[str] = ..., actor: _Optional[str] = ...) -> None: ...

class StartTuneResponse(_message.Message):
    __slots__ = ("tune_id", "adapter")
    TUNE_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    tune_id: str
    adapter: str
    def __init__(self, tune_id: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class JudgeAdapterRequest(_message.Message):
    __slots__ = ("adapter", "actor")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    actor: str
    def __init__(self, adapter: _Optional[str] = ..., actor: _Optional[str] = ...) -> None: ...

class JudgeAdapterResponse(_message.Message):
    __slots__ = ("tune_id",)
    TUNE_ID_FIELD_NUMBER: _ClassVar[int]
    tune_id: str
    def __init__(self, tune_id: _Optional[str] = ...) -> None: ...

class GetTuneRequest(_message.Message):
    __slots__ = ("tune_id",)
    TUNE_ID_FIELD_NUMBER: _ClassVar[int]
    tune_id: str
    def __init__(self, tune_id: _Optional[str] = ...) -> None: ...

class GetTuneResponse(_message.Message):
    __slots__ = ("tune_id", "task", "adapter", "phase", "step", "num_steps", "loss", "metrics", "refusals", "error", "mlflow_run_id", "questions_needed")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TUNE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MLFLOW_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_NEEDED_FIELD_NUMBER: _ClassVar[int]
    tune_id: str
    task: str
    adapter: str
    phase: str
    step: int
    num_steps: int
    loss: float
    metrics: _containers.ScalarMap[str, float]
    refusals: _containers.RepeatedScalarFieldContainer[str]
    error: str
    mlflow_run_id: str
    questions_needed: int
    def __init__(self, tune_id: _Optional[str] = ..., task: _Optional[str] = ..., adapter: _Optional[str] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., refusals: _Optional[_Iterable[str]] = ..., error: _Optional[str] = ..., mlflow_run_id: _Optional[str] = ..., questions_needed: _Optional[int] = ...) -> None: ...
