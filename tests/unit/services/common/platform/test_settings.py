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
    TritonSettings,
    declared_variables,
    load_settings,
    redacted,
    run_main,
    variable_of,
)


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
    settings = load_settings(ProbeSettings)
    assert (settings.port, settings.kafka_bootstrap_servers, settings.user_partitions) == (50100, "kafka:9092", 6)
    assert settings.tables_dir == Path("/dev/shm/tables")
    assert settings.feature_spec_path == Path("model_repo/ranker/feature_spec.yaml")


@pytest.mark.parametrize(
    ("name", "value"), [("TUNEMESH_PROBE_PORT", "eighty"), ("TUNEMESH_USER_PARTITIONS", "0"), ("TUNEMESH_TELEMETRY_SAMPLE_RATIO", "2")]
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
        ("https://user:hunter2@mlflow.example/", "https://***@mlflow.example/"),
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
