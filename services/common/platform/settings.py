"""Settings: one frozen class per process, read from the environment, with mixins for what several processes share.

Own settings carry the class's prefix (`TUNEMESH_ROUTER_PORT`); shared ones have one name for the whole mesh
(`KAFKA_BOOTSTRAP_SERVERS`). Nothing else in the project reads `os.environ`. Knows no service.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from pydantic import AliasChoices, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.platform.errors import ConfigurationError

EXIT_BAD_CONFIGURATION = 2

_CREDENTIALS = re.compile(r"://[^/\s]*@")

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


class _Shared(BaseSettings):
    """Root of all settings: frozen, described by docstrings, settable by field name in code."""

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True, extra="forbid", use_attribute_docstrings=True)


class BaseServiceSettings(_Shared):
    """What every process has: where it listens, how it drains, where its telemetry goes."""

    host: str = Field("127.0.0.1", min_length=1)
    """Address that the gRPC server (or the health server of a process without an API) binds to."""
    port: int = Field(0, ge=0, le=65535)
    """Port of the gRPC server; 0 takes a free one."""
    drain_grace_ms: int = Field(5_000, ge=0)
    """After SIGTERM, running calls get this long to end before they are cancelled."""
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    """Largest gRPC message that is sent or received."""
    telemetry_dir: Path = Field(Path("build/telemetry"), validation_alias="TUNEMESH_TELEMETRY_DIR")
    """Folder of the local span and metric files, used when no OTLP endpoint is set."""
    telemetry_sample_ratio: float = Field(1.0, ge=0.0, le=1.0, validation_alias="TUNEMESH_TELEMETRY_SAMPLE_RATIO")
    """Share of new traces that are recorded; a trace that comes from elsewhere keeps its sender's decision."""
    otlp_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    """OTLP gRPC endpoint, e.g. http://127.0.0.1:4317; unset or empty: local files."""


class KafkaSettings(_Shared):
    """For processes that read or write Kafka."""

    kafka_bootstrap_servers: str = Field("127.0.0.1:19092", min_length=1, validation_alias="KAFKA_BOOTSTRAP_SERVERS")
    """Comma-separated host:port list."""
    user_partitions: int = Field(2, ge=1, validation_alias="TUNEMESH_USER_PARTITIONS")
    """Partition count of every topic that is keyed by user."""


class RedisSettings(_Shared):
    """For processes that read or write Redis."""

    redis_url: str = Field("redis://127.0.0.1:16379/0", min_length=1, validation_alias="REDIS_URL")
    """Where the online features are."""


class TritonSettings(_Shared):
    """For processes that call Triton."""

    triton_url: str = Field("127.0.0.1:18001", min_length=1, validation_alias="TRITON_URL")
    """host:port of Triton's gRPC endpoint."""


class FeatureSpecSettings(_Shared):
    """For processes that must agree on the features."""

    feature_spec_path: Path = Field(Path("model_repo/ranker/feature_spec.yaml"), validation_alias="TUNEMESH_FEATURE_SPEC")
    """The feature-spec file."""


class ArtifactStoreSettings(_Shared):
    """For processes that read or write artifacts: bases, checkpoints, adapters, prompts."""

    artifacts_url: str = Field("build/artifacts", min_length=1, validation_alias="TUNEMESH_ARTIFACTS_URL")
    """fsspec URL of the bases and checkpoints, adapters and prompts."""


class ArtifactSettings(ArtifactStoreSettings):
    """For processes that also read or write mapped tables."""

    tables_dir: Path = Field(Path("build/tables"), validation_alias="TUNEMESH_TABLES_DIR")
    """Folder of the mapped tables of this host."""


class ModelSettings(_Shared):
    """For processes that load the language model, its tokenizer or the embedder."""

    models_dir: Path = Field(Path("build/models"), validation_alias="TUNEMESH_MODELS_DIR")
    """Folder of converted models."""
    llm_model: str = Field("SmolLM2-135M-Instruct", min_length=1, validation_alias="TUNEMESH_LLM_MODEL")
    """SmolLM2-135M-Instruct, a folder with Hugging Face files, or a Hugging Face id."""


class MlflowSettings(_Shared):
    """For processes that write to MLflow."""

    mlflow_tracking_uri: str = Field("http://127.0.0.1:15000", validation_alias="MLFLOW_TRACKING_URI")
    """Where MLflow is; empty: nothing is written to it."""


def declared_variables(cls: type[BaseSettings]) -> dict[str, str]:
    """Return variable name -> field name for every setting of `cls`: what compose files may set."""
    prefix = str(cls.model_config.get("env_prefix", ""))
    return {name: field for field in cls.model_fields for name in _variables_of(cls, field, prefix)}


def variable_of(settings: BaseSettings | type[BaseSettings], field: str) -> str:
    """Return the name of the variable that sets `field`, for messages that say what to change."""
    cls = settings if isinstance(settings, type) else type(settings)
    return _variables_of(cls, field, str(cls.model_config.get("env_prefix", "")))[0]


def _variables_of(cls: type[BaseSettings], field: str, prefix: str) -> list[str]:
    alias = cls.model_fields[field].validation_alias
    if alias is None:
        return [f"{prefix}{field}".upper()]
    choices: Iterable[Any] = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [str(choice) for choice in choices]


def load_settings(cls: type[SettingsT], environ: Mapping[str, str] | None = None) -> SettingsT:
    """Read `cls` from the environment.

    Args:
        cls: the settings class of the process.
        environ: variables that are checked for misspelt names; None means those of the process.
    Raises:
        ConfigurationError: a value is wrong, or a variable with this class's prefix names no setting. One line.
    """
    _refuse_unknown_variables(cls, os.environ if environ is None else environ)
    try:
        return cls()
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise ConfigurationError("; ".join(_describe(cls, detail) for detail in details)) from error


def redacted(settings: BaseSettings) -> str:
    """Return the settings as one line for the log; SecretStr values and credentials inside addresses show as asterisks."""
    return " ".join(f"{name}={without_credentials(str(value))}" for name, value in settings)


def without_credentials(text: str) -> str:
    """Return the text with `user:password@` of each address in it replaced: redis://:secret@host → redis://***@host."""
    return _CREDENTIALS.sub("://***@", text)


def _describe(cls: type[BaseSettings], detail: ErrorDetails) -> str:
    if not detail["loc"]:
        # Of a validator that looks at several settings: its message names their variables.
        return detail["msg"].removeprefix("Value error, ").replace("\n", " ")
    where = str(detail["loc"][0])
    variable = variable_of(cls, where) if where in cls.model_fields else where
    reason = detail["msg"][:1].lower() + detail["msg"][1:]
    if detail["type"] == "missing":
        return f"{variable} is not set, and it has no default: set it"
    return without_credentials(f"{variable}={detail['input']!s}: {reason}".replace("\n", " "))


def _refuse_unknown_variables(cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
    """Refuse a misspelt variable: pydantic-settings ignores it, and the process would run with the default."""
    prefix = str(cls.model_config.get("env_prefix", "")).upper()
    if not prefix:
        return
    known = declared_variables(cls)
    for name in environ:
        if name.upper().startswith(prefix) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), list(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            raise ConfigurationError(f"{name} names no setting of this service: {hint}")


def exit_with_configuration_error(error: ConfigurationError) -> None:
    """Print the one line and exit with code 2, which tells a supervisor that a restart will not help."""
    print(f"configuration error: {error}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_CONFIGURATION) from None


def run_main(main: Callable[[], Awaitable[None]]) -> None:
    """Run an asyncio process on uvloop; a ConfigurationError becomes one line on stderr and exit code 2.

    `main` is called inside the guard, so it may load its settings itself: `run_main(lambda: serve(load_settings(RouterSettings)))`.
    """

    async def guarded() -> None:
        await main()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(guarded())
    except ConfigurationError as error:
        exit_with_configuration_error(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
