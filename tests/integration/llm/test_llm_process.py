"""The llm service as a process, with the real vLLM, a real broker and adapters in a real store. One process for the whole module.

The broker is down when it starts. The tests run in order: the last one kills the engine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.numpy import save_file
from transformers import AutoTokenizer
from tunemesh.common.v1.chat_pb2 import ChatMessage, Sampling
from tunemesh.events.v1.control_pb2 import Alias, ControlRecord
from tunemesh.llm.v1 import llm_admin_service_pb2 as admin_pb
from tunemesh.llm.v1 import llm_admin_service_pb2_grpc, llm_service_pb2_grpc
from tunemesh.llm.v1 import llm_service_pb2 as pb

from services.common.events.topics import CONTROL
from services.common.language.adapter_manifest import AdapterManifest
from services.common.language.adapter_name import AdapterName
from services.common.language.base_model import PACKAGED_MODEL, packaged_folder
from services.common.language.control_tokens import control_tokens_of, harmless
from services.common.language.lora_store import AdapterStore
from services.common.platform.kafka_producer import durable_producer
from services.llm.weights import prepare
from services.mesh.runner.embedded import free_port
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.topics import mesh_topic_partitions
from tests.conftest import Broker
from tests.llm_process import LlmProcess

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.timeout(400)]

HIDDEN, INTERMEDIATE, LAST_LAYERS = 576, 1536, range(24, 30)
ALIAS = "llm/t/production"
QUESTION = "What is the capital of France?"


def name(version: int, task: str = "t") -> str:
    return f"{PACKAGED_MODEL}--{task}--v{version}"


def publish(store: AdapterStore, folder: Path, adapter: str, *, seed: int, rank: int = 8) -> None:
    """A LoRA with random weights on the last layers: useless, but unlike the base and unlike any other seed's."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in LAST_LAYERS:
        stem = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{stem}.lora_A.weight"] = random.normal(0, 0.05, (rank, INTERMEDIATE)).astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = random.normal(0, 0.5, (HIDDEN, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    parsed = AdapterName.parse(adapter)
    store.publish(adapter, folder, AdapterManifest(name=adapter, base_model=parsed.base, task=parsed.task))


class Llm:
    """The running process and its stubs."""

    def __init__(self, process: LlmProcess, broker: Broker, port: int, admin_port: int) -> None:
        self.process, self.broker = process, broker
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.admin_channel = grpc.insecure_channel(f"127.0.0.1:{admin_port}")
        self.stub = llm_service_pb2_grpc.LlmServiceStub(self.channel)
        self.admin = llm_admin_service_pb2_grpc.LlmAdminServiceStub(self.admin_channel)
        self._versions = 0

    def is_serving(self) -> bool:
        request = health_pb2.HealthCheckRequest(service="tunemesh.llm.v1.LlmService")
        return health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=60).status == health_pb2.HealthCheckResponse.SERVING

    def stream(self, text: str = QUESTION, *, adapter: str = "", timeout: float = 60, **sampling):
        request = pb.GenerateRequest(
            request_id="r", messages=[ChatMessage(role="user", content=text)], sampling=Sampling(**sampling), adapter=adapter
        )
        return self.stub.Generate(request, timeout=timeout)

    def ask(self, text: str = QUESTION, **fields) -> str:
        return "".join(response.text for response in self.stream(text, **{"max_tokens": 16, **fields}))

    def states(self) -> dict[str, str]:
        response = self.admin.ListAdapters(admin_pb.ListAdaptersRequest(), timeout=60)
        prefix = "ADAPTER_STATE_"
        return {adapter.name: admin_pb.AdapterState.Name(adapter.state).removeprefix(prefix) for adapter in response.adapters}

    def load(self, adapter: str) -> None:
        self.admin.LoadAdapter(admin_pb.LoadAdapterRequest(name=adapter), timeout=60)

    def point(self, target: str) -> None:
        """Move the alias, as the trainer's control API does."""
        self._versions += 1
        record = ControlRecord(subject=f"alias/{ALIAS}", version=self._versions, alias=Alias(target=target))
        producer = durable_producer(self.broker.bootstrap, client_id="test")
        producer.send(CONTROL.name, key=record.subject.encode(), value=record.SerializeToString()).get(10)
        producer.close()

    def close(self) -> None:
        self.channel.close()
        self.admin_channel.close()


def has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more; one whose parent has not asked for its exit status (a zombie) counts."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def title_of(process: psutil.Process) -> str:
    """Its command line; nothing when it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def until(condition, timeout_s: float) -> float:
    """Wait for it; return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s} s"
        time.sleep(0.05)
    return time.monotonic() - started


def refused(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> AdapterStore:
    folder = tmp_path_factory.mktemp("artifacts")
    store = AdapterStore(folder)
    for version in (1, 2, 3):
        publish(store, folder / "made" / str(version), name(version), seed=version)
    publish(store, folder / "made" / "large", name(1, "large"), seed=1, rank=64)
    publish(store, folder / "made" / "foreign", "Other--t--v1", seed=1)
    return store


@pytest.fixture(scope="module")
def llm(store, tmp_path_factory) -> Iterator[Llm]:
    models_dir = REPOSITORY_ROOT / "build" / "models"
    prepare(PACKAGED_MODEL, models_dir)
    folder = tmp_path_factory.mktemp("llm")
    broker = Broker(folder / "broker")
    broker.kill()
    admin_port = free_port()
    env = {
        "TUNEMESH_LLM_PORT": "0",
        "TUNEMESH_LLM_ADMIN_PORT": str(admin_port),
        "TUNEMESH_LLM_ADAPTERS_DIR": str(folder / "adapters"),
        "TUNEMESH_LLM_MAX_NUM_SEQS": "2",
        "TUNEMESH_LLM_MAX_WAITING": "0",
        "TUNEMESH_LLM_MAX_LORAS": "2",
        "TUNEMESH_LLM_MAX_CPU_LORAS": "2",
        "TUNEMESH_LLM_ALIAS_WAIT_MS": "500",
        "TUNEMESH_LLM_KV_CACHE_GIB": "0.25",
        "TUNEMESH_MODELS_DIR": str(models_dir),
        "TUNEMESH_ARTIFACTS_URL": str(store_folder(store)),
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
    }
    with LlmProcess(env, folder / "llm.log") as process:
        running = Llm(process, broker, process.wait_ready(60), admin_port)
        assert not running.is_serving()
        assert refused(running.ask).code() == grpc.StatusCode.UNAVAILABLE
        until(running.is_serving, 180)
        yield running
        running.close()
        process.stop()
    broker.stop()


def store_folder(store: AdapterStore) -> Path:
    return Path(store._root).parent


def test_an_answer_streams_and_says_what_it_is(llm):
    responses = list(llm.stream())
    assert "Paris" in "".join(response.text for response in responses)
    assert len(responses) >= 4
    assert [response.model_version for response in responses[:2]] == [PACKAGED_MODEL, ""]
    assert [bool(response.finish_reason) for response in responses[-2:]] == [False, True]
    assert responses[-1].finish_reason == "stop"
    assert responses[-1].usage.prompt_tokens > 20
    assert responses[-1].usage.completion_tokens >= len(responses) - 1


def test_sampling_is_what_was_asked_for(llm):
    assert llm.ask() == llm.ask()
    warm = {"temperature": 1.5, "max_tokens": 12}
    assert llm.ask(seed=2**64 - 1, **warm) == llm.ask(seed=2**64 - 1, **warm) != llm.ask(seed=2, **warm)
    assert llm.ask(stop=["Paris"]) == "The capital of France is "
    last = list(llm.stream(max_tokens=3))[-1]
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 3)


def test_a_prompt_beyond_the_context_is_refused_and_counting_says_how_long_it_was(llm):
    text = "word " * 2100
    (count,) = llm.stub.CountTokens(pb.CountTokensRequest(texts=[text])).counts
    assert 2100 <= count <= 2102
    error = refused(lambda: llm.ask(text))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "too many: the model takes 2048" in error.details()


def test_a_control_token_in_a_message_is_text(llm):
    (broken,) = llm.stub.CountTokens(pb.CountTokensRequest(texts=["<|im_end|>"])).counts
    assert broken == 1
    plain, guarded = (list(llm.stream(text, max_tokens=1))[-1].usage.prompt_tokens for text in ("x", "x<|im_end|>"))
    assert guarded - plain > 2


def test_hanging_up_stops_the_generation_and_a_full_engine_says_so(llm):
    started = time.monotonic()
    llm.ask()
    limit_s = max(5.0, 10 * (time.monotonic() - started))
    story = {"text": "Tell a very long story.", "max_tokens": 1000, "timeout": 120}
    streams = [llm.stream(**story) for _ in range(2)]
    for stream in streams:
        next(stream)
    assert refused(llm.ask).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for stream in streams:
        stream.cancel()
    # Both places in the engine would be taken for 1,000 tokens by the stories if they went on: sixty times an answer of 16.
    until(lambda: answers(llm), limit_s)
    assert llm.ask(timeout=limit_s).startswith("The capital")


def answers(llm: Llm) -> bool:
    try:
        return bool(llm.ask(max_tokens=1))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        return False


def test_an_adapter_is_loaded_by_name_answers_by_name_and_leaves_the_base_alone(llm):
    base = llm.ask()
    assert refused(lambda: llm.ask(adapter=name(1))).code() == grpc.StatusCode.NOT_FOUND
    llm.load(name(1))
    llm.load(name(2))
    assert llm.states() == {name(1): "WARM", name(2): "WARM"}
    assert next(iter(llm.stream(adapter=name(1), max_tokens=2))).model_version == name(1)
    first, second = llm.ask(adapter=name(1)), llm.ask(adapter=name(2))
    assert len({base, first, second}) == 3
    together: dict[str, str] = {}
    threads = [threading.Thread(target=lambda a=a: together.update({a: llm.ask(adapter=a)})) for a in (name(1), name(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {name(1): first, name(2): second}
    assert llm.ask() == base
    llm.admin.UnloadAdapter(admin_pb.UnloadAdapterRequest(name=name(1)), timeout=30)
    assert llm.states() == {name(2): "WARM"}
    assert refused(lambda: llm.ask(adapter=name(1))).code() == grpc.StatusCode.NOT_FOUND
    llm.load(name(1))
    assert llm.ask(adapter=name(1)) == first


@pytest.mark.parametrize(
    ("adapter", "code", "detail"),
    [
        (name(9), grpc.StatusCode.NOT_FOUND, "there is no adapter"),
        ("nonsense", grpc.StatusCode.INVALID_ARGUMENT, "is no adapter name"),
        ("Other--t--v1", grpc.StatusCode.FAILED_PRECONDITION, "is made for Other"),
        (name(1, "large"), grpc.StatusCode.FAILED_PRECONDITION, "rank"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_and_the_engine_goes_on(llm, adapter, code, detail):
    error = refused(lambda: llm.load(adapter))
    assert error.code() == code
    assert detail in error.details()
    assert llm.ask().startswith("The capital")


def test_no_special_token_of_the_model_survives_in_what_people_write(llm):
    tokenizer = AutoTokenizer.from_pretrained(packaged_folder(REPOSITORY_ROOT / "build" / "models"))
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert len(special) > len(tokenizer.all_special_tokens), "its role and tool markers are among the added tokens only"
    rude = harmless(" ".join(special.values()) + "".join(special.values()), control_tokens_of(tokenizer))
    assert not special.keys() & set(tokenizer(rude, add_special_tokens=False)["input_ids"])


def test_aliases_are_followed_once_the_broker_is_there_and_a_roll_back_is_live_within_5_s(llm):
    llm.broker.restart_with_topics(mesh_topic_partitions(user_partitions=2), clients=[llm.process.pid])
    llm.point(name(2))
    until(lambda: llm.states().get(name(2)) == "LIVE", 20)
    # Both slots are taken; v1 has no alias and goes.
    llm.point(name(3))
    until(lambda: llm.states().get(name(3)) == "LIVE", 30)
    assert llm.states() == {name(2): "WARM", name(3): "LIVE"}
    error = refused(lambda: llm.admin.UnloadAdapter(admin_pb.UnloadAdapterRequest(name=name(3)), timeout=10))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    took_s = []
    for back, forth in ((2, 3), (3, 2), (2, 3)):  # the shortest of three counts: the machine may stand still for a while, not three times
        started = time.monotonic()
        llm.point(name(back))
        until(lambda back=back, forth=forth: llm.states() == {name(back): "LIVE", name(forth): "WARM"}, 60)
        assert llm.ask(adapter=name(back), max_tokens=1)
        took_s.append(time.monotonic() - started)
    assert min(took_s) < 5, took_s
    llm.broker.kill()
    assert llm.ask(adapter=name(2), max_tokens=1)


def test_a_dead_engine_ends_its_streams_with_unavailable_and_the_process_with_an_error(llm):
    stream = llm.stream("Tell a very long story.", max_tokens=1000)
    next(stream)
    tree = psutil.Process(llm.process.pid).children(recursive=True)
    worker = next(process for process in tree if "Worker" in title_of(process))
    started = time.monotonic()
    worker.kill()
    error = refused(lambda: list(stream))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 20  # the death itself was seen, not the silence after it (probe_timeout_ms)
    assert llm.process.wait(60) == 1
    assert "the llm service stops" in llm.process.log
    # The tracker of shared memory is nobody's to wait for: it ends when the last holder of its pipe has, some moments after the service.
    until(lambda: all(has_ended(process) for process in tree), 10)
