"""The parts of a mesh that the operator's commands call, as real gRPC servers with made-up insides."""

from __future__ import annotations

import threading
from concurrent import futures

import grpc
from tunemesh.events.v1.control_pb2 import Alias
from tunemesh.llm.v1 import llm_admin_service_pb2 as admin_pb
from tunemesh.llm.v1 import llm_admin_service_pb2_grpc as admin_grpc
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2 as prompt_pb
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2_grpc as prompt_grpc
from tunemesh.retriever.v1 import retriever_service_pb2 as retriever_pb
from tunemesh.retriever.v1 import retriever_service_pb2_grpc as retriever_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc
from tunemesh.trainer.v1 import trainer_service_pb2 as trainer_pb
from tunemesh.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from tunemesh.trainer.v1 import tuner_service_pb2 as tuner_pb
from tunemesh.trainer.v1 import tuner_service_pb2_grpc as tuner_grpc

from services.common.platform.control import AliasConflict, AliasNotFound, ControlState

BASE = "SmolLM2-135M-Instruct"


class FakeParts(
    trainer_grpc.TrainerServiceServicer,
    tuner_grpc.TunerServiceServicer,
    router_grpc.RouterServiceServicer,
    admin_grpc.LlmAdminServiceServicer,
    prompt_grpc.PromptAssemblerServiceServicer,
    retriever_grpc.RetrieverServiceServicer,
):
    """Aliases move by the real rules of control.v1; the mesh follows a move after `lag` questions.

    Attributes:
        adapters: those that LoadAdapter knows.
        versions: of the template "answer".
        loaded: names that LoadAdapter was asked for.
        restores: RestoreCheckpoint requests.
        refused_files, incomplete_files: of the documents' folder, with their reasons.
    """

    def __init__(self) -> None:
        self.state, self.lag = ControlState(), 3
        self._asked: dict[str, int] = {}
        self.adapters, self.versions = {f"{BASE}--helpdesk--v1", f"{BASE}--helpdesk--v2"}, 3
        self.loaded: list[str] = []
        self.refused: set[str] = set()
        self.restores: list[trainer_pb.RestoreCheckpointRequest] = []
        self.paused, self.source_offsets = False, [0, 0]
        self.passed_over: list[tuple[int, int, int]] = []
        self.interloper: str | None = None
        self.degraded = ""
        self.refused_files: dict[str, str] = {}
        self.incomplete_files: dict[str, str] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        trainer_grpc.add_TrainerServiceServicer_to_server(self, self._server)
        tuner_grpc.add_TunerServiceServicer_to_server(self, self._server)
        router_grpc.add_RouterServiceServicer_to_server(self, self._server)
        admin_grpc.add_LlmAdminServiceServicer_to_server(self, self._server)
        prompt_grpc.add_PromptAssemblerServiceServicer_to_server(self, self._server)
        retriever_grpc.add_RetrieverServiceServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def GetIndexStatus(self, request, context) -> retriever_pb.GetIndexStatusResponse:
        return retriever_pb.GetIndexStatusResponse(
            index_version="e1.7",
            passages_by_source={"files": 1_200, "catalog": 3},
            refused_files=self.refused_files,
            incomplete_files=self.incomplete_files,
        )

    def stop(self) -> None:
        self._server.stop(0).wait()

    def set(self, alias: str, *targets: str) -> None:
        for target in targets:
            with self._lock:
                version = self.state.version(f"alias/{alias}")
                self.state.apply(self.state.alias_change(alias, target, version, now_ms=0, actor="test"))
                self._asked[alias] = 0

    def followed(self, alias: str) -> str:
        """What a follower believes that was asked so often since the move."""
        try:
            now: Alias = self.state.alias(alias).alias
        except AliasNotFound:
            return ""
        with self._lock:
            self._asked[alias] += 1
            return now.target if self._asked[alias] > self.lag else now.previous_target

    def GetAlias(self, request, context):
        try:
            record = self.state.alias(request.alias)
        except AliasNotFound as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        answer = trainer_pb.GetAliasResponse(
            target=record.alias.target, version=record.version, previous_target=record.alias.previous_target
        )
        if self.interloper is not None:
            self.set(request.alias, self.interloper)
        return answer

    def SetAlias(self, request, context):
        if request.target in self.refused and not request.allow_unjudged:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the adapter gate refused {request.target}")
        try:
            changed = self.state.alias_change(request.alias, request.target, request.expected_version, now_ms=0, actor=request.actor)
        except AliasConflict as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        if not request.validate_only:
            self.set(request.alias, request.target)
        return trainer_pb.SetAliasResponse(version=changed.version)

    def GetStatus(self, request, context):
        passed_over = [trainer_pb.PassedOver(partition=at, first_offset=first, end_offset=end) for at, first, end in self.passed_over]
        return trainer_pb.GetStatusResponse(
            epoch=3, seq=8, paused=self.paused, samples_trained=120, source_offsets=self.source_offsets, passed_over=passed_over
        )

    def PauseLearning(self, request, context):
        self.paused = True
        return trainer_pb.PauseLearningResponse()

    def ResumeLearning(self, request, context):
        self.paused = False
        return trainer_pb.ResumeLearningResponse()

    def GetTunerStatus(self, request, context):
        return tuner_pb.GetTunerStatusResponse(paused=self.paused, running_tune_id="t1")

    def RestoreCheckpoint(self, request, context):
        self.restores.append(request)
        skipped = [40, 2] if request.skip_later_samples else [0, 0]
        return trainer_pb.RestoreCheckpointResponse(
            checkpoint="checkpoint-7",
            checkpoint_created_at_ms=request.not_after_ms - 5,
            checkpoint_version="3.1100",
            epoch=4,
            source_offsets=[1, 2],
            skipped=skipped,
        )

    def Generate(self, request, context):
        target = self.followed(f"llm/{request.task}/production") or "base"
        version = BASE if target == "base" or self.degraded else target
        header = router_pb.GenerateHeader(request_id="r", model_version=version, degraded_reason=self.degraded)
        yield router_pb.GenerateResponse(header=header)
        yield router_pb.GenerateResponse(text="yes", finish_reason="length")

    def LoadAdapter(self, request, context):
        if request.name not in self.adapters:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no adapter {request.name}")
        self.loaded.append(request.name)
        return admin_pb.LoadAdapterResponse()

    def GetTemplate(self, request, context):
        version = request.version or int(self.followed(f"prompt/{request.name}/{request.label}")[1:])
        if version > self.versions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.name} has no version {version}")
        return prompt_pb.GetTemplateResponse(template=prompt_pb.Template(name=request.name, version=version))
