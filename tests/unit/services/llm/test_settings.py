from __future__ import annotations

import pytest

from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import load_settings, variable_of
from services.llm.settings import AdminSettings, LlmSettings


def test_the_adapter_api_listens_on_loopback_even_when_the_public_one_does_not(monkeypatch):
    monkeypatch.setenv("TUNEMESH_LLM_HOST", "0.0.0.0")
    settings = load_settings(LlmSettings)
    admin = AdminSettings.of(settings)
    assert (settings.host, settings.port) == ("0.0.0.0", 50058)
    assert (admin.host, admin.port) == ("127.0.0.1", 50059)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TUNEMESH_LLM_MAX_CPU_LORAS", "1", "TUNEMESH_LLM_MAX_CPU_LORAS=1 is below TUNEMESH_LLM_MAX_LORAS=2"),
        ("TUNEMESH_LLM_DEFAULT_MAX_TOKENS", "2000", "is above TUNEMESH_LLM_MAX_TOKENS=1024"),
        ("TUNEMESH_LLM_MAX_LORA_RANK", "17", "TUNEMESH_LLM_MAX_LORA_RANK=17"),
        ("TUNEMESH_LLM_ADAPTERS_DIR", "build/artifacts/adapters", "is inside TUNEMESH_ARTIFACTS_URL=build/artifacts"),
        ("TUNEMESH_LLM_DTYPE", "int3", "TUNEMESH_LLM_DTYPE=int3"),
        ("TUNEMESH_LLM_MODLE", "x", "did you mean TUNEMESH_LLM_MODEL"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_that_names_the_variable(monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(LlmSettings)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_every_number_can_be_set_by_its_variable(monkeypatch):
    """A Literal of numbers, for one, takes none from the environment, where all is text."""
    for name, field in LlmSettings.model_fields.items():
        if field.annotation in (int, float):
            monkeypatch.setenv(variable_of(LlmSettings, name), str(field.default))
    assert load_settings(LlmSettings) == LlmSettings()
