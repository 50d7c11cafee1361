"""Settings: one frozen class per process, read from the environment, with mixins for what several processes share.

Own settings carry the class's prefix (`TUNEMESH_ROUTER_PORT`); shared ones have one name for the whole mesh
(`KAFKA_BOOTSTRAP_SERVERS`). A variable that is set to nothing counts as unset. Nothing else in the project reads `os.environ`. Knows
no service.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import urlsplit

import uvloop
from pydantic import AfterValidator, AliasChoices, Field, Secret, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.platform.errors import ConfigurationError
from services.common.platform.kafka_compression import Compression
from services.common.platform.secrets import HIDDEN, Redactor, guard_output, holds_password, secrets_in, without_credentials
from services.common.platform.stderr_log import end_logging

EXIT_BAD_CONFIGURATION = 2

# What Kubernetes puts into every container for each Service of its namespace: of a Service "tunemesh-router" TUNEMESH_ROUTER_SERVICE_HOST,
# …_SERVICE_PORT, …_SERVICE_PORT_GRPC, …_PORT_50051_TCP, …_PORT_50051_TCP_ADDR and so on, and …_PORT with a value such as tcp://10.0.0.7:50051.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://[0-9a-fA-F.:\[\]]+:\d+")

_log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


class SecretAddress(Secret[str]):
    """An address that may hold a password: `get_secret_value()` to connect with; printed, it shows asterisks in the password's place."""

    def _display(self) -> str:
        return without_credentials(self.get_secret_value())


def _without_store_password(url: str) -> str:
    if holds_password(url):
        raise ValueError(
            "holds a password, which would be published with every pointer to an artifact; give the store's credentials by its own "
            "variables, such as AWS_SECRET_ACCESS_KEY or FSSPEC_FTP_PASSWORD"
        )
    return url


def _without_collector_password(endpoint: str) -> str:
    if holds_password(endpoint):
        raise ValueError("holds a password, which gRPC takes for a part of the host's name; give it by OTEL_EXPORTER_OTLP_HEADERS")
    return endpoint


def _usable_redis_url(url: SecretAddress) -> SecretAddress:
    try:
        parts = urlsplit(url.get_secret_value())
        is_usable = parts.scheme == "unix" or (parts.scheme in ("redis", "rediss") and parts.port != 0)
    except ValueError:  # its text may hold a piece of the password
        is_usable = False
    if not is_usable:
        raise ValueError(REDIS_URL_FORM)
    return url


REDIS_URL_FORM = (
    "not of the form redis://host:port/database (or rediss://, unix://); user:password and an at sign may stand before the host, their "
    "special characters percent-encoded"
)

ArtifactUrl = Annotated[str, AfterValidator(_without_store_password)]
"""fsspec URL of artifacts. It travels in topics and manifests, so it holds no password."""


class Settings(BaseSettings):
    """Root of all settings: frozen, described by docstrings, settable by field name in code; an empty variable is an unset one."""

    model_config = SettingsConfigDict(
        frozen=True,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _ignore_service_links(cls, values: Any) -> Any:
        """Leave a port at its default whose variable Kubernetes has set to the address of a Service."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if not (name.lower().endswith("port") and _is_service_address(value))}


class BaseServiceSettings(Settings):
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
    otlp_endpoint: Annotated[str, AfterValidator(_without_collector_password)] | None = Field(
        None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    """OTLP gRPC endpoint, e.g. http://127.0.0.1:4317; unset: local files. Credentials for it belong into OTEL_EXPORTER_OTLP_HEADERS."""


class KafkaWriterSettings(Settings):
    """For whatever writes to Kafka."""

    kafka_compression: Compression = Field("none", validation_alias="TUNEMESH_KAFKA_COMPRESSION")
    """How every producer of the mesh compresses what it writes: none, gzip, snappy, lz4 or zstd. All readers read all of them."""


class KafkaSettings(KafkaWriterSettings):
    """For processes that read or write Kafka."""

    kafka_bootstrap_servers: str = Field("127.0.0.1:19092", min_length=1, validation_alias="KAFKA_BOOTSTRAP_SERVERS")
    """Comma-separated host:port list."""
    user_partitions: int = Field(2, ge=1, validation_alias="TUNEMESH_USER_PARTITIONS")
    """Partition count of every topic that is keyed by user."""


class RedisSettings(Settings):
    """For processes that read or write Redis."""

    redis_url: Annotated[SecretAddress, AfterValidator(_usable_redis_url)] = Field(
        SecretAddress("redis://127.0.0.1:16379/0"), validation_alias="REDIS_URL"
    )
    """Where the online features are: redis://host:port/database, or redis://user:password@host:port/database."""


class TritonSettings(Settings):
    """For processes that call Triton."""

    triton_url: str = Field("127.0.0.1:18001", min_length=1, validation_alias="TRITON_URL")
    """host:port of Triton's gRPC endpoint."""


class FeatureSpecSettings(Settings):
    """For processes that must agree on the features."""

    feature_spec_path: Path = Field(Path("model_repo/ranker/feature_spec.yaml"), validation_alias="TUNEMESH_FEATURE_SPEC")
    """The feature-spec file."""


class ArtifactStoreSettings(Settings):
    """For processes that read or write artifacts: bases, checkpoints, adapters, prompts."""

    artifacts_url: ArtifactUrl = Field("build/artifacts", min_length=1, validation_alias="TUNEMESH_ARTIFACTS_URL")
    """fsspec URL of the bases and checkpoints, adapters and prompts. It holds no password: the store has variables of its own for that."""


class ArtifactSettings(ArtifactStoreSettings):
    """For processes that also read or write mapped tables."""

    tables_dir: Path = Field(Path("build/tables"), validation_alias="TUNEMESH_TABLES_DIR")
    """Folder of the mapped tables of this host."""


class ModelSettings(Settings):
    """For processes that load the language model, its tokenizer or the embedder."""

    models_dir: Path = Field(Path("build/models"), validation_alias="TUNEMESH_MODELS_DIR")
    """Folder of converted models."""
    llm_model: str = Field("SmolLM2-135M-Instruct", min_length=1, validation_alias="TUNEMESH_LLM_MODEL")
    """SmolLM2-135M-Instruct, a folder with Hugging Face files, or a Hugging Face id."""


class MlflowSettings(Settings):
    """For processes that write to MLflow."""

    mlflow_tracking_uri: SecretAddress | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")
    """Where MLflow is, e.g. http://127.0.0.1:15000; unset: nothing is written to it."""


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
    checked = os.environ if environ is None else environ
    _refuse_unknown_variables(cls, without_service_links(checked))
    links = [name for name in _service_links(checked) if name.upper().startswith(_prefix_of(cls))]
    if links:
        _log.warning(
            "%s: %d variables of Kubernetes service links are ignored (%s, …); enableServiceLinks: false leaves them out",
            cls.__name__,
            len(links),
            min(links),
        )
    try:
        return cls()
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise ConfigurationError("; ".join(_describe(cls, detail) for detail in details)) from error


def without_service_links(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables but for those that Kubernetes makes of the Services of a namespace."""
    links = _service_links(environ)
    return {name: value for name, value in environ.items() if name not in links}


def process_redactor() -> Redactor:
    """Return what cleans text of the secrets among this process's variables."""
    return Redactor(secrets_in(os.environ))


def redacted(settings: BaseSettings) -> str:
    """Return the settings as one line for the log; secrets and credentials inside addresses show as asterisks."""
    return " ".join(f"{name}={without_credentials(str(value))}" for name, value in settings)


def _prefix_of(cls: type[BaseSettings]) -> str:
    return str(cls.model_config.get("env_prefix", "")).upper() or "TUNEMESH_"


def _is_service_address(value: Any) -> bool:
    return isinstance(value, str) and _SERVICE_LINK_VALUE.fullmatch(value) is not None


def _service_links(environ: Mapping[str, str]) -> set[str]:
    return {
        name
        for name, value in environ.items()
        if name.startswith("TUNEMESH_") and (_SERVICE_LINK.search(name) or (name.endswith("_PORT") and _is_service_address(value)))
    }


def _describe(cls: type[BaseSettings], detail: ErrorDetails) -> str:
    if not detail["loc"]:
        # Of a validator that looks at several settings: its message names their variables.
        return detail["msg"].removeprefix("Value error, ").replace("\n", " ")
    where = str(detail["loc"][0])
    variable = variable_of(cls, where) if where in cls.model_fields else where
    message = detail["msg"].removeprefix("Value error, ")
    reason = message[:1].lower() + message[1:]
    if detail["type"] == "missing":
        return f"{variable} is not set, and it has no default: set it"
    field = cls.model_fields.get(declared_variables(cls).get(where, where))
    shown = HIDDEN if field is not None and _is_secret(field) else process_redactor()(str(detail["input"]))
    return f"{variable}={shown}: {reason}".replace("\n", " ")


def _is_secret(field: FieldInfo) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(isinstance(kind, type) and issubclass(kind, Secret) for kind in kinds)


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
    """Print the one line, after which the log is silent, and exit with code 2, which tells a supervisor that a restart will not help."""
    end_logging()
    print(f"configuration error: {process_redactor()(str(error))}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_CONFIGURATION) from None


def run_main(main: Callable[[], Awaitable[None]]) -> None:
    """Run an asyncio process on uvloop; a ConfigurationError becomes one line on stderr and exit code 2. From here on no secret is printed.

    `main` is called behind the guard, so it may load its settings itself: `run_main(lambda: serve(load_settings(RouterSettings)))`.
    """

    async def called() -> None:
        await main()

    guard_output(os.environ)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(called())
    except ConfigurationError as error:
        exit_with_configuration_error(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
