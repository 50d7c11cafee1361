"""The dashboards, Prometheus and the collector of docker-compose.yml: they ask for metrics that exist, at addresses that exist."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.events.feedback_kinds import ANSWER_KINDS
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.environments import REPOSITORY_ROOT

CONFIGS = REPOSITORY_ROOT / "services" / "mesh" / "observability"
DASHBOARDS = sorted((CONFIGS / "grafana" / "dashboards").glob("*.json"))
COMPOSE = load_compose(REPOSITORY_ROOT / "docker-compose.yml", {})
QUALITY = "tunemesh_quality_"

# Words of a PromQL expression that are no metrics.
PROMQL = {"sum", "by", "rate", "increase", "topk", "histogram_quantile", "le"}


def instruments() -> dict[str, str]:
    """Name -> kind of every OpenTelemetry instrument that the code makes."""
    paths = [path for folder in ("services", "streams", "model_repo") for path in (REPOSITORY_ROOT / folder).rglob("*.py")]
    calls = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {
        name: "create_histogram" if call.func.attr == "histogram" else call.func.attr
        for call in calls
        if isinstance(call.func, ast.Attribute) and re.fullmatch("create_.*|histogram", call.func.attr) and call.args
        for name in instrument_names(call.args[0])
        if "." in name
    }


def instrument_names(argument: ast.expr) -> list[str]:
    """The names that an instrument's first argument can have: itself, or f"{name}.…" with the name of every stream."""
    if isinstance(argument, ast.Constant):
        return [str(argument.value)]
    if isinstance(argument, ast.JoinedStr) and ast.unparse(argument).startswith("f'{name}."):
        return [ast.unparse(argument)[2:-1].replace("{name}", path.name) for path in sorted((REPOSITORY_ROOT / "streams").iterdir())]
    return []


def exported() -> set[str]:
    """The names under which Prometheus sees them: dots as underscores, a histogram as three series (add_metric_suffixes: false)."""
    names = set()
    for name, kind in instruments().items():
        flat = name.replace(".", "_")
        names |= {f"{flat}_bucket", f"{flat}_sum", f"{flat}_count"} if kind == "create_histogram" else {flat}
    return names


def exported_by_quality() -> set[str]:
    """The names of the quality stream's own endpoint: its prefix and a metric that its code names."""
    words = {kind.metric for kind in ANSWER_KINDS.values()}
    for path in (REPOSITORY_ROOT / "streams" / "quality").glob("*.py"):
        words |= set(re.findall(r"[\"}]([a-z][a-z0-9_]*)[.\"]", path.read_text(encoding="utf-8")))
    return {f"{QUALITY}{word}" for word in words} | {f"{QUALITY}{word}_total" for word in ("alarms", "windows")}


def expressions(dashboard: Path) -> Iterator[tuple[str, str]]:
    for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def metrics_in(expression: str) -> set[str]:
    """The metric names of a PromQL expression: its words without label selectors, groupings, ranges and functions."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)", " ", expression)
    return {word for word in re.findall(r"[a-z_][a-z0-9_]*", bare) if word not in PROMQL}


def config(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8")))


def test_a_metric_is_found_in_an_expression_whatever_stands_around_it() -> None:
    expression = 'histogram_quantile(0.9, sum by (le, service_name) (rate(rpc_server_duration_bucket{rpc_method=~"a.b"}[1m])))'
    assert metrics_in(expression) == {"rpc_server_duration_bucket"}


def test_there_is_a_dashboard_for_each_half_for_learning_and_for_quality() -> None:
    assert [path.stem for path in DASHBOARDS] == ["learning", "llm", "quality", "recommend"]
    uids = [json.loads(path.read_text(encoding="utf-8"))["uid"] for path in DASHBOARDS]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_asks_for_metrics_that_the_mesh_exports(dashboard: Path) -> None:
    known = exported() | exported_by_quality()
    found = [(title, metrics_in(expression)) for title, expression in expressions(dashboard)]
    assert found
    assert [(title, sorted(names - known)) for title, names in found if not names or names - known] == []


def test_every_panel_reads_from_a_provisioned_data_source() -> None:
    provisioned = {source["uid"]: source["url"] for source in config("grafana/datasources/datasources.yaml")["datasources"]}
    for dashboard in DASHBOARDS:
        for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
            assert panel["datasource"]["uid"] in provisioned
    assert {url.removeprefix("http://").partition(":")[0] for url in provisioned.values()} <= set(COMPOSE.services)


def test_prometheus_fetches_from_services_of_compose_at_their_ports() -> None:
    collector_port = config("collector.yaml")["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    quality_port = COMPOSE.services["quality"].environment["TUNEMESH_QUALITY_METRICS_PORT"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config("prometheus.yaml")["scrape_configs"]}
    assert jobs == {"mesh": [f"otel-collector:{collector_port}"], "quality": [f"quality:{quality_port}"], "prometheus": ["localhost:9090"]}


def test_the_services_send_to_the_collector_which_sends_traces_to_jaeger_and_keeps_names() -> None:
    collector = config("collector.yaml")
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert COMPOSE.services["router"].environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://otel-collector:{port}"
    assert collector["exporters"]["otlp/jaeger"]["endpoint"].partition(":")[0] in COMPOSE.services
    assert collector["exporters"]["prometheus"]["add_metric_suffixes"] is False
    assert collector["exporters"]["prometheus"]["resource_to_telemetry_conversion"] == {"enabled": True}
    for pipeline in collector["service"]["pipelines"].values():
        assert set(pipeline["receivers"]) <= set(collector["receivers"])
        assert set(pipeline["processors"]) <= set(collector["processors"])
        assert set(pipeline["exporters"]) <= set(collector["exporters"])
