from tunemesh.common.v1.chat_pb2 import Sampling as SamplingMessage

from services.common.events.chat import Message, Passage, Sampling, Usage
from services.common.events.wire import chat


def test_turns_passages_sampling_and_usage_go_to_the_wire_and_back() -> None:
    messages = (Message("system", "Be brief."), Message("user", "用户"))
    assert chat.messages_of(chat.chat_messages(messages)) == messages
    passages = (Passage("Heat", "1995", "catalog:1", 0.5), Passage("", "given"))
    assert chat.passages_of(chat.passage_messages(passages)) == passages
    sampling = Sampling(temperature=0.5, top_p=0.25, max_tokens=7, seed=2**64 - 1, stop=("x", "y"))
    assert chat.sampling_of(chat.sampling_message(sampling)) == sampling
    usage = Usage(prompt_tokens=9, completion_tokens=3)
    assert chat.usage_of(chat.usage_message(usage)) == usage


def test_what_a_message_does_not_say_is_the_default() -> None:
    assert chat.sampling_of(SamplingMessage()) == Sampling()
