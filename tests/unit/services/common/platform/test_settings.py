import importlib
from pathlib import Path

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import (
    ArtifactSettings,
    BaseServiceSettings,
    FeatureSpecSettings,
    KafkaSettings,
    RedisSettings,
    Settings,
    TritonSettings,
    declared_variables,
    load_settings,
    redacted,
    run_main,
    variable_of,
    without_service_links,
)
from services.mesh.runner.settings import MeshSettings
from services.retriever.settings import RetrieverSettings
from services.router.settings import RouterSettings


class ProbeSettings(KafkaSettings, RedisSettings, TritonSettings, FeatureSpecSettings, ArtifactSettings, BaseServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TUNEMESH_PROBE_")

    port: int = Field(50099, ge=0, le=65535)
    secret: SecretStr = SecretStr("hunter2")


class NeedySettings(BaseServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TUNEMESH_NEEDY_")

    target: str


def test_own_settings_carry_the_prefix_and_shared_ones_have_one_name_for_the_mesh(monkeypatch):
    monkeypatch.setenv("TUNEMESH_PROBE_PORT", "50100")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092")
    monkeypatch.setenv("TUNEMESH_USER_PARTITIONS", "6")
    monkeypatch.setenv("TUNEMESH_TABLES_DIR", "/dev/shm/tables")
    assert load_settings(ProbeSettings).kafka_compression == "none"
    monkeypatch.setenv("TUNEMESH_KAFKA_COMPRESSION", "zstd")
    settings = load_settings(ProbeSettings)
    assert settings.kafka_compression == "zstd"
    assert (settings.port, settings.kafka_bootstrap_servers, settings.user_partitions) == (50100, "kafka:9092", 6)
    assert settings.tables_dir == Path("/dev/shm/tables")
    assert settings.feature_spec_path == Path("model_repo/ranker/feature_spec.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TUNEMESH_PROBE_PORT", "eighty"),
        ("TUNEMESH_USER_PARTITIONS", "0"),
        ("TUNEMESH_TELEMETRY_SAMPLE_RATIO", "2"),
        ("TUNEMESH_KAFKA_COMPRESSION", "brotli"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable_and_the_value(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(ProbeSettings)
    assert f"{name}={value}: input should be" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_value_says_which_variable_to_set(monkeypatch):
    with pytest.raises(ConfigurationError, match="TUNEMESH_NEEDY_TARGET is not set"):
        load_settings(NeedySettings)


def test_a_misspelt_variable_is_refused_and_the_right_name_suggested(monkeypatch):
    monkeypatch.setenv("TUNEMESH_PROBE_PROT", "1")
    with pytest.raises(ConfigurationError, match=r"TUNEMESH_PROBE_PROT names no setting .* did you mean TUNEMESH_PROBE_PORT"):
        load_settings(ProbeSettings)


def test_the_declared_variables_are_exactly_those_that_can_be_set():
    variables = declared_variables(ProbeSettings)
    assert variables["TUNEMESH_PROBE_PORT"] == "port"
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "otlp_endpoint"
    assert variables["TUNEMESH_ARTIFACTS_URL"] == "artifacts_url"
    assert "TUNEMESH_PROBE_KAFKA_BOOTSTRAP_SERVERS" not in variables
    assert len(variables) == len(ProbeSettings.model_fields)


def test_a_message_can_name_the_variable_of_a_field():
    assert variable_of(ProbeSettings(), "port") == "TUNEMESH_PROBE_PORT"
    assert variable_of(ProbeSettings, "redis_url") == "REDIS_URL"


def test_the_dump_for_the_log_hides_secrets():
    dump = redacted(ProbeSettings())
    assert "port=50099" in dump and "hunter2" not in dump


def test_settings_cannot_be_changed_after_they_were_read():
    with pytest.raises(ValueError, match="frozen"):
        ProbeSettings().port = 1  # type: ignore[misc]


def test_a_configuration_error_ends_the_process_with_one_line_and_code_2(capsys):
    async def main() -> None:
        raise ConfigurationError("port 1 is taken")

    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "configuration error: port 1 is taken\n"


def test_another_error_is_not_taken_for_a_configuration_error():
    async def main() -> None:
        raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        run_main(main)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:hunter2@cache:6379/0", "redis://***@cache:6379/0"),
        ("rediss://user:hunter2@cache.example/", "rediss://***@cache.example/"),
        ("redis://user:hunt@er2@cache:6379/0", "redis://***@cache:6379/0"),
        ("redis://127.0.0.1:16379/0", "redis://127.0.0.1:16379/0"),
    ],
)
def test_a_password_inside_an_address_is_not_shown(monkeypatch, address, shown):
    monkeypatch.setenv("REDIS_URL", address)
    assert f"redis_url={shown}" in redacted(ProbeSettings())


def test_a_refused_value_does_not_show_its_password(monkeypatch):
    monkeypatch.setenv("TUNEMESH_PROBE_PORT", "tcp://user:hunter2@host")
    with pytest.raises(ConfigurationError) as refused:
        load_settings(ProbeSettings)
    assert "hunter2" not in str(refused.value) and "tcp://***@host" in str(refused.value)


@pytest.mark.parametrize(
    "address", ["redis://:hunter#2@cache:6379", "redis://:hunter2/x@cache", "user:hunter2@cache:6379", "http://:hunter2@cache"]
)
def test_a_redis_address_that_cannot_be_used_is_refused_without_a_piece_of_it(monkeypatch, address):
    monkeypatch.setenv("REDIS_URL", address)
    with pytest.raises(ConfigurationError, match=r"REDIS_URL=\*\*\*: not of the form redis://") as refused:
        load_settings(ProbeSettings)
    assert "hunter" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("TUNEMESH_ARTIFACTS_URL", "ftp://user:hunter2@store/base", "FSSPEC_FTP_PASSWORD"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:hunter2@collector:4317", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_a_password_where_it_would_travel_on_is_refused_with_the_place_for_it(monkeypatch, name, value, instead):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name}=.*{instead}") as refused:
        load_settings(ProbeSettings)
    assert "hunter2" not in str(refused.value)


def test_an_empty_variable_is_an_unset_one_for_every_setting_of_every_service(monkeypatch):
    for cls in all_settings():
        names = declared_variables(cls)
        with monkeypatch.context() as patch:
            for name in names:
                patch.delenv(name, raising=False)
            unset = cls()
            for name in names:
                patch.setenv(name, "")
            assert load_settings(cls) == unset, cls.__name__


def test_empty_variables_name_no_folder(monkeypatch):
    monkeypatch.setenv("TUNEMESH_RETRIEVER_DOCUMENTS_DIR", "")
    monkeypatch.setenv("KAFKA_HOME", "")
    assert load_settings(RetrieverSettings).documents_dir is None
    assert load_settings(MeshSettings).kafka_home is None


def all_settings() -> list[type[Settings]]:
    """The settings classes of every program of the project that imports without torch."""
    for path in sorted([*Path("services").rglob("settings.py"), *Path("streams").rglob("settings.py")]):
        importlib.import_module(".".join(path.with_suffix("").parts))
    found, todo = [], [Settings]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if cls.__module__.startswith(("services.", "streams.")) and cls.model_config.get("env_prefix"):
            found.append(cls)
    assert len(found) > 15
    return found


# What Kubernetes puts into a container for a Service tunemesh-router with a named port, and for one whose name begins alike.
SERVICE_LINKS = {
    "TUNEMESH_ROUTER_SERVICE_HOST": "10.96.7.1",
    "TUNEMESH_ROUTER_SERVICE_PORT": "50051",
    "TUNEMESH_ROUTER_SERVICE_PORT_GRPC": "50051",
    "TUNEMESH_ROUTER_PORT": "tcp://10.96.7.1:50051",
    "TUNEMESH_ROUTER_PORT_50051_TCP": "tcp://10.96.7.1:50051",
    "TUNEMESH_ROUTER_PORT_50051_TCP_PROTO": "tcp",
    "TUNEMESH_ROUTER_PORT_50051_TCP_PORT": "50051",
    "TUNEMESH_ROUTER_PORT_50051_TCP_ADDR": "10.96.7.1",
    "TUNEMESH_ROUTER_CANARY_SERVICE_HOST": "fd00::1",
    "TUNEMESH_ROUTER_CANARY_PORT": "tcp://[fd00::1]:50051",
    "TUNEMESH_ROUTER_CANARY_PORT_50051_UDP_ADDR": "fd00::1",
}


def test_the_variables_of_kubernetes_services_are_ignored_with_one_line(monkeypatch, caplog):
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TUNEMESH_ROUTER_MAX_DEADLINE_MS", "1234")
    settings = load_settings(RouterSettings)
    assert (settings.port, settings.max_deadline_ms) == (50051, 1234)
    [line] = [record.getMessage() for record in caplog.records]
    assert "11 variables of Kubernetes service links are ignored" in line and "enableServiceLinks: false" in line


@pytest.mark.parametrize(
    "module", ["router", "recommender", "retriever", "trainer", "llm", "tuner", "feedback_collector", "prompt_assembler"]
)
def test_no_service_stumbles_over_the_service_links_of_any(monkeypatch, module):
    for owner in ("ROUTER", "RECOMMENDER", "RETRIEVER", "TRAINER", "LLM", "LLM_ADMIN", "TUNER", "FEEDBACK_COLLECTOR", "PROMPT_ASSEMBLER"):
        for name, value in SERVICE_LINKS.items():
            monkeypatch.setenv(name.replace("ROUTER", owner), value)
    module = importlib.import_module(f"services.{module}.settings")
    for cls in all_settings():
        if cls.__module__ == module.__name__:
            unset = cls.model_fields["port"].default
            assert load_settings(cls).port == unset


def test_a_port_in_a_wrong_form_and_a_misspelt_name_are_still_refused_beside_service_links(monkeypatch):
    monkeypatch.setenv("TUNEMESH_ROUTER_PORT", "tcp://router")
    with pytest.raises(ConfigurationError, match="TUNEMESH_ROUTER_PORT=tcp://router"):
        load_settings(RouterSettings)
    monkeypatch.setenv("TUNEMESH_ROUTER_SERVICE_HOSTS", "x")
    with pytest.raises(ConfigurationError, match="TUNEMESH_ROUTER_SERVICE_HOSTS names no setting"):
        load_settings(RouterSettings)
    assert without_service_links(SERVICE_LINKS | {"TUNEMESH_ROUTER_PORT": "50051", "PATH": "/bin"}) == {
        "TUNEMESH_ROUTER_PORT": "50051",
        "PATH": "/bin",
    }
