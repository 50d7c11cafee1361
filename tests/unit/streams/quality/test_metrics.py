import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common.platform.errors import ConfigurationError
from streams.quality.core import Alarm, Key, Window
from streams.quality.metrics import MetricsServer, QualityMetrics
from tests.limits import seconds

KEY = Key("recommend", "a", "3")


@pytest.fixture
def metrics():
    return QualityMetrics()


@pytest.fixture
def server(metrics):
    started = MetricsServer(metrics, host="127.0.0.1", port=0)
    yield started
    started.close()


def scraped(server) -> dict[tuple, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=seconds(20)) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    order = ("alarm", "kind", "variant", "model_version", "feature", "replica", "topic", "reason")
    named = [(sample, [sample.labels[label] for label in order if label in sample.labels]) for sample in samples]
    return {(sample.name.removeprefix("tunemesh_quality_"), *labels): sample.value for sample, labels in named}


def test_windows_are_told_with_their_labels(metrics, server) -> None:
    own = {"requests": 12.0, "feedback": 3.0, "psi.user.mean": 0.3, "psi.scores": 0.1}
    mesh = {
        "feedback": 4.0,
        "watermark_age_ms": 9.0,
        "watermark_age_ms.host-1": 9.0,
        "dead_letters.feedback.v1.orphan": 2.0,
        "dead_letters": 2.0,
    }
    windows = [Window(KEY, 0, 10_000, own, [Alarm("drift", 0.3, 0.25, "")]), Window(Key("mesh", "", ""), 0, 10_000, mesh, [])]
    metrics.show(windows)
    metrics.show(windows)
    found = scraped(server)
    assert found[("requests", *KEY)] == 12
    assert found[("psi", *KEY, "user.mean")] == 0.3
    assert (found[("feedback", *KEY)], found[("mesh_feedback",)]) == (3, 4)
    assert (found[("watermark_age_ms", "")], found[("watermark_age_ms", "host-1")]) == (9, 9)
    assert found[("dead_letters", "feedback.v1", "orphan")] == 2
    assert found[("alarm", "drift", *KEY)] == 0.3
    assert (found[("alarms_total", "drift")], found[("windows_total",)], found[("window_end_seconds",)]) == (2, 4, 10)


def test_a_variant_without_traffic_has_no_series(metrics, server) -> None:
    metrics.show([Window(KEY, 0, 10_000, {"requests": 1.0}, [])])
    metrics.show([])
    assert ("requests", *KEY) not in scraped(server)


def test_a_taken_port_is_one_line(server, metrics) -> None:
    with pytest.raises(ConfigurationError, match="TUNEMESH_QUALITY_METRICS_PORT"):
        MetricsServer(metrics, host="127.0.0.1", port=server.port)
