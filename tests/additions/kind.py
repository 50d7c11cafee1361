"""Prints, as JSON, what becomes of feedback of kind "stars": at the collector's door, as an example, and in a window of quality."""

import json
from dataclasses import replace

from tunemesh.events.v1.example_pb2 import LlmExample

from services.common.events.chat import Message
from services.common.events.feedback import Feedback
from services.common.events.generation import Generation
from services.common.platform.errors import InvalidInput
from services.feedback_collector.core import check
from streams.curator import codec
from streams.curator.core import example_of
from tests.unit.streams.quality.test_core import act, answered, close, quality


def refusal_of(feedback: Feedback) -> str:
    try:
        check([feedback], max_batch=1)
    except InvalidInput as error:
        return str(error)
    return ""


def example_for(value: float) -> LlmExample:
    generation = Generation(
        request_id="r",
        user_id="u",
        task="helpdesk",
        question="How long?",
        messages=(Message("user", "How long?"),),
        answer="A week.",
        finish_reason="stop",
        model_version="M",
        prompt_version="answer@v1",
        passage_ids=(),
        finished_at_ms=1,
    )
    return LlmExample.FromString(codec.write_example(example_of(generation, replace(stars, value=value))))


def metrics_of(*values: float) -> dict[str, float]:
    reducer = quality()
    reducer.generated(answered(0))
    for value in values:
        reducer.acted(act("g-0", kind="stars", value=value, item_id=""))
    [metrics] = [dict(window.metrics) for key, window in close(reducer).items() if key.kind == "generate"]
    return metrics


stars = Feedback(feedback_id="f", request_id="r", user_id="u", item_id="", kind="stars", value=4.0)
example = example_for(4.0)
print(
    json.dumps(
        {
            "refusals": [refusal_of(stars), refusal_of(replace(stars, value=4.5)), refusal_of(replace(stars, text="good"))],
            "example": [example.kind, example.score, example.answer],
            "metrics": metrics_of(1.0, 4.0),
        }
    )
)
