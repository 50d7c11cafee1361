"""The tuner's runs, versions and aliases on an MLflow server. See `mirror.Registry`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from typing_extensions import override

from services.common.language.adapter_name import AdapterName
from services.common.platform.errors import NotFound
from services.common.platform.mlflow_server import MAX_METRICS_PER_CALL, MAX_PARAMETER_CHARS, MAX_TAG_CHARS, MlflowServer
from services.tuner.mirror import Registry, RunRecord

_EXPERIMENT = "tunemesh/tuner"
_ALIAS = "production"
_ADAPTER_TAG = "tunemesh.adapter"


class MlflowRegistry(Registry):
    """Runs and versions on an MLflow server. Thread-safe; the library is imported at the first call, which takes seconds."""

    def __init__(self, tracking_uri: str) -> None:
        """Nothing is connected before the first call."""
        self._server = MlflowServer(tracking_uri, _EXPERIMENT)

    @override
    def begin_run(self, name: AdapterName, parameters: Mapping[str, str]) -> str:
        with self._server.speaking() as client:
            from mlflow.entities import Param

            run = client.create_run(self._server.experiment_id(client), run_name=str(name), tags={_ADAPTER_TAG: str(name)})
            params = [Param(key, value[:MAX_PARAMETER_CHARS]) for key, value in parameters.items()]
            client.log_batch(run.info.run_id, params=params, synchronous=True)
            return str(run.info.run_id)

    @override
    def find_run(self, name: AdapterName, run_id: str) -> str:
        """Return the run of an adapter. A tune that failed has left its adapter's name, and a run of that name, to the next."""
        if run_id:
            with contextlib.suppress(NotFound), self._server.speaking() as client:
                return str(client.get_run(run_id).info.run_id)
        with self._server.speaking() as client:
            query = f"tags.`{_ADAPTER_TAG}` = '{name}' and attributes.status != 'FAILED'"
            found = client.search_runs([self._server.experiment_id(client)], query, max_results=1, order_by=["attributes.start_time DESC"])
            return str(found[0].info.run_id) if found else ""

    @override
    def end_run(self, run_id: str, record: RunRecord) -> None:
        """End a run with its metrics. Values that are not finite are left out: MLflow's database cannot hold them all."""
        with self._server.speaking() as client:
            from mlflow.entities import Metric, RunTag

            at_ms = record.ended_at_ms
            metrics = [Metric(name, value, at_ms, 0) for name, value in record.metrics.items() if math.isfinite(value)]
            metrics += [Metric("loss", step.loss, at_ms, step.step) for step in record.losses if math.isfinite(step.loss)]
            tags = [RunTag(key, value[:MAX_TAG_CHARS]) for key, value in record.tags.items()]
            if record.failure:
                tags.append(RunTag("tunemesh.failure", record.failure[:MAX_TAG_CHARS]))
            client.log_batch(run_id, tags=tags, synchronous=True)
            for start in range(0, len(metrics), MAX_METRICS_PER_CALL):
                client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_CALL], synchronous=True)
            client.set_terminated(run_id, "FAILED" if record.failure else "FINISHED")

    @override
    def put_version(self, name: AdapterName, run_id: str, tags: Mapping[str, str]) -> str:
        with self._server.speaking() as client:
            model = _model_name(name.base, name.task)
            known = {version.tags.get(_ADAPTER_TAG): str(version.version) for version in client.search_model_versions(f"name = '{model}'")}
            if str(name) in known:
                version = known[str(name)]
                for key, value in tags.items():
                    client.set_model_version_tag(model, version, key, value[:MAX_TAG_CHARS])
                return version
            if not client.search_registered_models(f"name = '{model}'"):
                client.create_registered_model(model)
            # Not a path: the server refuses those of other machines. The adapter's name finds it in the store.
            source = f"tunemesh-adapter:///{name}"
            shortened = {key: value[:MAX_TAG_CHARS] for key, value in tags.items()} | {_ADAPTER_TAG: str(name)}
            made = client.create_model_version(model, source, run_id=run_id, tags=shortened, await_creation_for=0)
            return str(made.version)

    @override
    def point_alias(self, base: str, task: str, version: str) -> None:
        with self._server.speaking() as client:
            model = _model_name(base, task)
            if version:
                client.set_registered_model_alias(model, _ALIAS, version)
            else:
                client.delete_registered_model_alias(model, _ALIAS)


def _model_name(base: str, task: str) -> str:
    return f"{base}--{task}"
