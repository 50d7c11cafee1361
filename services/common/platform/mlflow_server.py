"""An MLflow server (package mlflow-skinny, over HTTP): one client, and its errors as ours. Knows nothing of what is written there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from services.common.platform.errors import InvalidInput, NotFound, ServiceError, Unavailable
from services.common.platform.secrets import without_credentials

# MLflow's own limits: a longer value is refused.
MAX_TAG_CHARS = 5_000
MAX_PARAMETER_CHARS = 6_000
MAX_METRICS_PER_CALL = 1_000
_HTTP_TIMEOUT_S = 10
_HTTP_RETRIES = 1
_ERRORS: Mapping[str, type[ServiceError]] = {"INVALID_PARAMETER_VALUE": InvalidInput, "RESOURCE_DOES_NOT_EXIST": NotFound}


class MlflowServer:
    """Thread-safe; the library is imported at the first call, which takes seconds."""

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        """Nothing is connected before the first call."""
        self._tracking_uri, self._experiment = tracking_uri, experiment
        self._lock = threading.Lock()
        self._client: Any = None
        self._experiment_id = ""

    @contextlib.contextmanager
    def speaking(self) -> Iterator[Any]:
        """Yield the client; MLflow's errors become ours. Those that say nothing about the request are Unavailable: it is tried again.

        Raises:
            InvalidInput: MLflow will not take what it was given.
            NotFound: it does not have what was asked for.
            Unavailable: it does not answer.
        """
        client = self._connected()
        from mlflow.exceptions import MlflowException

        try:
            yield client
        except (MlflowException, OSError) as error:
            kind = _ERRORS.get(getattr(error, "error_code", ""), Unavailable)
            address, reason = without_credentials(self._tracking_uri), without_credentials(" ".join(str(error).split()))
            raise kind(f"MLflow at {address}: {reason[:300]}") from error

    def experiment_id(self, client: Any) -> str:
        """Return the id of the experiment, which is made if there is none."""
        if not self._experiment_id:
            found = client.get_experiment_by_name(self._experiment)
            self._experiment_id = str(found.experiment_id) if found is not None else str(client.create_experiment(self._experiment))
        return self._experiment_id

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                # By default a call is tried for minutes; who calls has retries of its own, or does without.
                os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(_HTTP_RETRIES)
                os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(_HTTP_TIMEOUT_S)
                os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
                from mlflow import MlflowClient

                self._client = MlflowClient(tracking_uri=self._tracking_uri, registry_uri=self._tracking_uri)
            return self._client
