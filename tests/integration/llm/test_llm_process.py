"""The llm service as a process, with the real vLLM on the tiny model, a real broker and adapters in a real store.

The tests run in order: the last one kills the engine.
"""

from __future__ import annotations

import threading
import time

import grpc
import psutil
import pytest
from transformers import AutoTokenizer
from tunemesh.llm.v1 import llm_service_pb2 as pb

from services.common.language.control_tokens import control_tokens_of, harmless
from services.mesh.runner.topics import mesh_topic_partitions
from tests.integration.llm.running import Llm, name, refused, until
from tests.tiny_model import ANSWER, ANYTHING, CONTEXT, NAME, STORY, tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.timeout(400)]


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


def test_an_answer_streams_and_says_what_it_is(llm):
    responses = list(llm.stream())
    assert "".join(response.text for response in responses) == ANSWER
    assert [response.model_version for response in responses[:2]] == [NAME, ""]
    assert [bool(response.finish_reason) for response in responses[-2:]] == [False, True]
    assert responses[-1].finish_reason == "stop"
    assert responses[-1].usage.prompt_tokens > 20
    assert responses[-1].usage.completion_tokens >= len(responses) - 1
    story = list(llm.stream(STORY, max_tokens=200))
    assert len(story) > 20
    assert (story[-1].finish_reason, story[-1].usage.completion_tokens) == ("length", 200)


def test_sampling_is_what_was_asked_for(llm):
    assert llm.ask() == llm.ask()
    warm = {"temperature": 1.5, "max_tokens": 12}
    assert llm.ask(ANYTHING, seed=2**64 - 1, **warm) == llm.ask(ANYTHING, seed=2**64 - 1, **warm) != llm.ask(ANYTHING, seed=2, **warm)
    assert llm.ask(stop=["Paris"]) == "The capital of France is "


def test_a_prompt_beyond_the_context_is_refused_and_counting_says_how_long_it_was(llm):
    text = "word " * (CONTEXT + 50)
    (count,) = llm.stub.CountTokens(pb.CountTokensRequest(texts=[text])).counts
    assert CONTEXT + 50 <= count <= CONTEXT + 52
    error = refused(lambda: llm.ask(text))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"too many: the model takes {CONTEXT}" in error.details()


def test_a_control_token_in_a_message_is_text(llm):
    (broken,) = llm.stub.CountTokens(pb.CountTokensRequest(texts=["<|im_end|>"])).counts
    assert broken > 2
    plain, guarded = (list(llm.stream(text, max_tokens=1))[-1].usage.prompt_tokens for text in ("x", "x<|im_end|>"))
    assert guarded - plain > 2


def test_hanging_up_stops_the_generation_and_a_full_engine_says_so(llm):
    started = time.monotonic()
    llm.ask(STORY, max_tokens=100)
    limit_s = 80 * (time.monotonic() - started)
    streams = [llm.stream(STORY, max_tokens=32_000, timeout=600) for _ in range(2)]
    for stream in streams:
        next(stream)
    assert refused(llm.ask).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for stream in streams:
        stream.cancel()
    # Both places in the engine would be taken for 320 times as many tokens if the stories went on.
    ended = time.monotonic() + limit_s
    while not answers(llm):
        assert time.monotonic() < ended, f"the engine is still full after {limit_s:.0f} s"
        time.sleep(0.05)
    assert llm.ask() == ANSWER


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
    llm.unload(name(1))
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
    assert llm.ask() == ANSWER


def test_no_special_token_of_the_model_survives_in_what_people_write(llm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert len(special) > len(tokenizer.all_special_tokens), "its role and tool markers are among the added tokens only"
    rude = harmless(" ".join(special.values()) + "".join(special.values()), control_tokens_of(tokenizer))
    assert not special.keys() & set(tokenizer(rude, add_special_tokens=False)["input_ids"])


def test_aliases_are_followed_once_the_broker_is_there_and_a_rollback_loads_nothing(llm):
    llm.broker.restart_with_topics(mesh_topic_partitions(user_partitions=2), clients=[llm.process.pid])
    llm.point(name(2))
    until(lambda: llm.states().get(name(2)) == "LIVE", 60)
    # Both slots are taken; v1 has no alias and goes.
    llm.point(name(3))
    until(lambda: llm.states().get(name(3)) == "LIVE", 60)
    assert llm.states() == {name(2): "WARM", name(3): "LIVE"}
    error = refused(lambda: llm.unload(name(3)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    for back, forth in ((2, 3), (3, 2)):
        llm.point(name(back))
        until(lambda back=back, forth=forth: llm.states() == {name(back): "LIVE", name(forth): "WARM"}, 60)
        assert llm.ask(adapter=name(back), max_tokens=1)
    llm.broker.kill()
    assert llm.ask(adapter=name(2), max_tokens=1)


def test_a_dead_engine_ends_its_streams_with_unavailable_and_the_process_with_an_error(llm):
    stream = llm.stream(STORY, max_tokens=32_000, timeout=600)
    next(stream)
    tree = psutil.Process(llm.process.pid).children(recursive=True)
    worker = next(process for process in tree if "Worker" in title_of(process))
    worker.kill()
    error = refused(lambda: list(stream))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert llm.process.wait(60) == 1
    assert "the llm service stops" in llm.process.log
    # The tracker of shared memory is nobody's to wait for: it ends when the last holder of its pipe has, some moments after the service.
    until(lambda: all(has_ended(process) for process in tree), 60)
