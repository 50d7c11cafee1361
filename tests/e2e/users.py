"""Who talks to the mesh in the end-to-end tests: people who ask, rate and correct by tunemesh_client, and the control APIs beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
from tunemesh.trainer.v1 import trainer_service_pb2 as trainer_pb
from tunemesh.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from tunemesh.trainer.v1 import tuner_service_pb2_grpc as tuner_grpc

from services.mesh.runner.mesh import Mesh
from tests.limits import seconds
from tunemesh_client import Answer, Client, Feedback, Receipt, Recommendation, RetryPolicy, Sampling

_DEADLINE_S = 90.0


class Users:
    """Every call is repeated while the service that it needs is dead; what is acknowledged counts. Thread-safe."""

    def __init__(self, mesh: Mesh) -> None:
        """Of a running mesh."""
        self._client = Client(
            mesh.address("router"),
            mesh.address("feedback_collector"),
            retry=RetryPolicy(retries=None, max_pause_s=1.0),
            deadline_s=seconds(_DEADLINE_S),
            generate_deadline_s=seconds(_DEADLINE_S),
        )
        options = [("grpc.max_reconnect_backoff_ms", 500)]
        self._channels = [grpc.insecure_channel(mesh.address(name), options=options) for name in ("trainer", "tuner")]
        self.trainer = trainer_grpc.TrainerServiceStub(self._channels[0])
        self.tuner = tuner_grpc.TunerServiceStub(self._channels[1])

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        for channel in self._channels:
            channel.close()

    def recommend(
        self, user_id: str, candidates: Sequence[str] = (), *, limit: int = 0, context: Mapping[str, object] | None = None
    ) -> Recommendation:
        """Ask what to show."""
        return self._client.recommend(user_id, candidates, limit, context=context or {})

    def rate(self, request_id: str, user_id: str, item_id: str, stars: float = 5.0) -> Receipt:
        """Rate what an answer showed."""
        return self._client.feedback(Feedback(request_id=request_id, user_id=user_id, item_id=item_id, kind="rating", value=stars))

    def ask(self, question: str, *, task: str = "", source: str = "") -> Answer:
        """Ask a question; with a `source`, passages of it are retrieved."""
        sampling = Sampling(max_tokens=24)
        return self._client.generate(
            "editor", question, task=task, retrieve=bool(source), retrieval_source=source, sampling=sampling
        ).read()

    def correct(self, answer: Answer, text: str) -> Receipt:
        """Say what an answer should have been."""
        return self._client.feedback(Feedback(request_id=answer.request_id, user_id="editor", kind="demonstration", text=text))

    def status(self) -> trainer_pb.GetStatusResponse:
        """Ask the trainer, and wait for it while it is dead."""
        return self.trainer.GetStatus(trainer_pb.GetStatusRequest(), timeout=seconds(_DEADLINE_S), wait_for_ready=True)
