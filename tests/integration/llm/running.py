"""A running llm service with its stubs, and adapters for the tiny model. Imports in both environments."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.common.v1.chat_pb2 import ChatMessage, Sampling
from tunemesh.events.v1.control_pb2 import Alias, ControlRecord
from tunemesh.llm.v1 import llm_admin_service_pb2 as admin_pb
from tunemesh.llm.v1 import llm_admin_service_pb2_grpc, llm_service_pb2_grpc
from tunemesh.llm.v1 import llm_service_pb2 as pb

from services.common.events.topics import CONTROL
from services.common.language.adapter_manifest import AdapterManifest
from services.common.language.adapter_name import AdapterName
from services.common.language.lora_store import AdapterStore
from services.common.platform.kafka_producer import durable_producer
from tests.conftest import Broker
from tests.limits import seconds
from tests.service_process import Service
from tests.tiny_model import HIDDEN, INTERMEDIATE, LAYERS, NAME, QUESTION

ALIAS = "llm/t/production"


def name(version: int, task: str = "t") -> str:
    return f"{NAME}--{task}--v{version}"


def publish(store: AdapterStore, folder: Path, adapter: str, *, seed: int, rank: int = 8) -> None:
    """A LoRA with random weights: useless, but unlike the base and unlike any other seed's."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        stem = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{stem}.lora_A.weight"] = random.normal(0, 0.5, (rank, INTERMEDIATE)).astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = random.normal(0, 0.5, (HIDDEN, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    parsed = AdapterName.parse(adapter)
    store.publish(adapter, folder, AdapterManifest(name=adapter, base_model=parsed.base, task=parsed.task))


class Llm:
    """The running process, its stubs, its broker and its store of adapters."""

    def __init__(self, process: Service, broker: Broker, store: AdapterStore, *, port: int, admin_port: int) -> None:
        self.process, self.broker, self.store = process, broker, store
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.admin_channel = grpc.insecure_channel(f"127.0.0.1:{admin_port}")
        self.stub = llm_service_pb2_grpc.LlmServiceStub(self.channel)
        self.admin = llm_admin_service_pb2_grpc.LlmAdminServiceStub(self.admin_channel)
        self._versions = 0

    def is_serving(self) -> bool:
        request = health_pb2.HealthCheckRequest(service="tunemesh.llm.v1.LlmService")
        found = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=seconds(60))
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)

    def stream(self, text: str = QUESTION, *, adapter: str = "", timeout: float = 60, **sampling: object) -> Iterator[pb.GenerateResponse]:
        return self.chat([ChatMessage(role="user", content=text)], adapter=adapter, timeout=timeout, **sampling)

    def chat(
        self, messages: list[ChatMessage], *, adapter: str = "", timeout: float = 60, **sampling: object
    ) -> Iterator[pb.GenerateResponse]:
        request = pb.GenerateRequest(request_id="r", messages=messages, sampling=Sampling(**sampling), adapter=adapter)
        return self.stub.Generate(request, timeout=seconds(timeout))

    def ask(self, text: str = QUESTION, **fields: object) -> str:
        return "".join(response.text for response in self.stream(text, **{"max_tokens": 16, **fields}))

    def states(self) -> dict[str, str]:
        response = self.admin.ListAdapters(admin_pb.ListAdaptersRequest(), timeout=seconds(60))
        prefix = "ADAPTER_STATE_"
        return {adapter.name: admin_pb.AdapterState.Name(adapter.state).removeprefix(prefix) for adapter in response.adapters}

    def load(self, adapter: str) -> None:
        self.admin.LoadAdapter(admin_pb.LoadAdapterRequest(name=adapter), timeout=seconds(60))

    def unload(self, adapter: str) -> None:
        self.admin.UnloadAdapter(admin_pb.UnloadAdapterRequest(name=adapter), timeout=seconds(60))

    def point(self, target: str) -> None:
        """Move the alias, as the trainer's control API does."""
        self._versions += 1
        record = ControlRecord(subject=f"alias/{ALIAS}", version=self._versions, alias=Alias(target=target))
        producer = durable_producer(self.broker.bootstrap, client_id="test")
        producer.send(CONTROL.name, key=record.subject.encode(), value=record.SerializeToString()).get(seconds(10))
        producer.close()

    def close(self) -> None:
        self.channel.close()
        self.admin_channel.close()


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds(timeout_s)
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds(timeout_s):.0f} s"
        time.sleep(0.05)


def refused(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value
