"""What the logs say about one request: `explain` finds its records and returns them as one JSON-able document.

The request's id carries its time (UUIDv7), so a bounded piece of each topic is read, and of most topics one partition only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.example_pb2 import LlmExample
from tunemesh.samples.v1.sample_pb2 import SampleRecord

from services.common.events.envelope import Headers, MalformedRecord, parse_value
from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.events.generation import Generation
from services.common.events.topics import EXPOSURES, FEEDBACK, GENERATIONS, LLM_EXAMPLES, SAMPLES
from services.common.events.wire.exposure import parse_exposure
from services.common.events.wire.feedback import parse_feedback
from services.common.events.wire.generation import parse_generation
from services.common.platform.errors import NotFound, ServiceError
from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.operate import why_report
from services.mesh.operate.log_scan import LogScanner, Scan
from services.mesh.operate.times import iso, request_time_ms
from services.mesh.operate.why_report import Placed


class OfRequest(Protocol):
    """What belongs to a request."""

    @property
    def request_id(self) -> str:
        """The request's id."""
        ...


MessageT = TypeVar("MessageT")
OfRequestT = TypeVar("OfRequestT", bound=OfRequest)
Parse = Callable[[bytes | None, Headers | None], MessageT]
LearnedBy = Callable[[], why_report.Learned | None]

_log = logging.getLogger(__name__)


class Window(NamedTuple):
    """Which records belong to the time of a request, Unix milliseconds."""

    since_ms: int
    until_ms: int


def explain(
    request_id: str, scanner: LogScanner, spec: FeatureSpec, *, before_ms: int, after_ms: int, learned: LearnedBy
) -> dict[str, Any]:
    """Return what the logs say about a request; see why_report for its keys.

    Args:
        request_id: a recommendation's or an answer's.
        scanner: of the mesh's broker.
        spec: names the features.
        before_ms: how long before the id's time records are looked for.
        after_ms: how long after it.
        learned: called for how far the trainer is; returns None when that is not known.
    Raises:
        InvalidInput: not a request id.
        NotFound: no exposure and no generation of it lies in that time.
        Unavailable: no broker.
    """
    made_ms = request_time_ms(request_id)
    window = Window(made_ms - before_ms, made_ms + after_ms)
    exposed = _of_request(scanner, EXPOSURES.name, partial(parse_exposure, with_request=True), request_id, window)
    if exposed.found:
        return _explain_recommendation(exposed, scanner, spec, window, learned)
    generated = _of_request(scanner, GENERATIONS.name, parse_generation, request_id, window)
    if generated.found:
        return _explain_generation(generated, scanner, window)
    num_read = exposed.num_read + generated.num_read
    cut = "; the limit of records was reached (TUNEMESH_OPERATE_SCAN_RECORDS)" if exposed.is_cut or generated.is_cut else ""
    raise NotFound(
        f"no exposure and no generation of {request_id} was written between {iso(window.since_ms)} and {iso(window.until_ms)} "
        f"({num_read} records read{cut})"
    )


def _explain_recommendation(
    exposed: Scan[Placed[Exposure]], scanner: LogScanner, spec: FeatureSpec, window: Window, learned: LearnedBy
) -> dict[str, Any]:
    exposure = exposed.found[0].message
    request_id, user_id = exposure.request_id, exposure.user_id

    def group_of(record: Any) -> Placed[SampleRecord] | None:
        sample = _parsed(record, _parse_sample) if request_id.encode() in (record.value or b"") else None
        return Placed(sample, record.partition, record.offset) if sample is not None and sample.group.request_id == request_id else None

    samples = scanner.scan(SAMPLES.name, group_of, since_ms=window.since_ms, until_ms=window.until_ms, key=user_id)
    feedback = _feedback(scanner, request_id, user_id, window)
    letters = _dead_letters(scanner, request_id, window, EXPOSURES.dlq, FEEDBACK.dlq, SAMPLES.dlq)
    report = why_report.recommendation(exposed.found[0], samples.found, feedback.found, letters.found, spec, learned())
    return report | _cuts({SAMPLES.name: samples, FEEDBACK.name: feedback, "dead letters": letters})


def _explain_generation(generated: Scan[Placed[Generation]], scanner: LogScanner, window: Window) -> dict[str, Any]:
    generation = generated.found[0].message
    feedback = _feedback(scanner, generation.request_id, generation.user_id, window)
    examples = _of_request(scanner, LLM_EXAMPLES.name, _parse_example, generation.request_id, window, key=generation.task, only_first=False)
    letters = _dead_letters(scanner, generation.request_id, window, FEEDBACK.dlq, GENERATIONS.dlq)
    report = why_report.generation(generated.found[0], feedback.found, examples.found, letters.found)
    return report | _cuts({FEEDBACK.name: feedback, LLM_EXAMPLES.name: examples, "dead letters": letters})


def _of_request(
    scanner: LogScanner,
    topic: str,
    parse: Parse[OfRequestT],
    request_id: str,
    window: Window,
    *,
    key: str | None = None,
    only_first: bool = True,
) -> Scan[Placed[OfRequestT]]:
    wanted = request_id.encode()

    def find(record: Any) -> Placed[OfRequestT] | None:
        if wanted not in (record.value or b""):  # in Protobuf and in JSON alike; parsing every record would take ten times as long
            return None
        message = _parsed(record, parse)
        if message is None or message.request_id != request_id:
            return None
        return Placed(message, record.partition, record.offset)

    return scanner.scan(topic, find, since_ms=window.since_ms, until_ms=window.until_ms, key=key, only_first=only_first)


def _feedback(scanner: LogScanner, request_id: str, user_id: str, window: Window) -> Scan[Placed[Feedback]]:
    return _of_request(scanner, FEEDBACK.name, parse_feedback, request_id, window, key=user_id, only_first=False)


def _dead_letters(scanner: LogScanner, request_id: str, window: Window, *topics: str) -> Scan[DeadLetter]:
    """Letters that hold a record of the request; a letter without its record (personal data) is found by nothing."""
    wanted = request_id.encode()

    def find(record: Any) -> DeadLetter | None:
        return _parsed(record, _parse_letter) if wanted in (record.value or b"") else None

    together: Scan[DeadLetter] = Scan()
    for topic in topics:
        try:
            scan = scanner.scan(topic, find, since_ms=window.since_ms, until_ms=window.until_ms)
        except ServiceError as error:
            _log.warning("dead letters of %s are left out: %s", topic, error)
            together.is_cut = True
            continue
        together.found += scan.found
        together.num_read += scan.num_read
        together.is_cut |= scan.is_cut
    return together


def _parse_sample(value: bytes | None, headers: Headers | None) -> SampleRecord:
    return parse_value(value, headers, SampleRecord)


def _parse_example(value: bytes | None, headers: Headers | None) -> LlmExample:
    return parse_value(value, headers, LlmExample)


def _parse_letter(value: bytes | None, headers: Headers | None) -> DeadLetter:
    return parse_value(value, headers, DeadLetter)


def _parsed(record: Any, parse: Parse[MessageT]) -> MessageT | None:
    try:
        return parse(record.value, record.headers)
    except MalformedRecord:
        return None


def _cuts(scans: dict[str, Scan[Any]]) -> dict[str, Any]:
    """Say of which topics not everything was read."""
    return {"incomplete": [name for name, scan in scans.items() if scan.is_cut]}
