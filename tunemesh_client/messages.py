"""What goes in and what comes out, as frozen dataclasses, and their way to and from the contract's messages. Pure but for minted ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from tunemesh.common.v1 import chat_pb2, passage_pb2, recommendation_pb2
from tunemesh.events.v1 import feedback_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2 as collector_pb2
from tunemesh.router.v1 import router_service_pb2 as router_pb2

from tunemesh_client.attributes import NONE, Attributes, write_attributes
from tunemesh_client.ids import Id, canonical_id, canonical_ids, new_id


@dataclass(frozen=True, slots=True)
class Item:
    """One recommended item."""

    item_id: str
    score: float
    """What the list is sorted by. Higher is better; comparable within one recommendation only."""
    task_scores: tuple[float, ...]
    """One probability per task, in the order of `Recommendation.task_names`. Empty when the ranker did not answer."""
    reasons: tuple[str, ...]
    """Why the item is here, e.g. "candidate", "popular", "similar_to:172"."""


class Items(Sequence[Item]):
    """The items of a recommendation. They are read out of the answer when they are first looked at: a call costs what it costs without."""

    __slots__ = ("_made", "_messages")

    def __init__(self, messages: Sequence[recommendation_pb2.RankedItem]) -> None:
        """`messages` do not change any more."""
        self._messages = messages
        self._made: tuple[Item, ...] | None = None

    def _items(self) -> tuple[Item, ...]:
        if self._made is None:
            # A slice of a repeated field is several times as fast as its iterator.
            self._made = tuple(
                [Item(each.item_id, each.score, tuple(each.task_scores[:]), tuple(each.reasons[:])) for each in self._messages]
            )
        return self._made

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        """Return one, or several."""
        return self._items()[index]

    def __iter__(self) -> Iterator[Item]:
        """Iterate, best first."""
        return iter(self._items())

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of items."""
        return self._items() == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        """Hash like the tuple of the items."""
        return hash(self._items())

    def __repr__(self) -> str:
        """Show the items."""
        return repr(self._items())

    def __reduce__(self) -> tuple[type[tuple[Item, ...]], tuple[tuple[Item, ...]]]:
        """Pickle as a tuple."""
        return tuple, (self._items(),)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An answer of Recommend; feedback about it names its `request_id`."""

    request_id: str
    items: Sequence[Item]
    """Best first."""
    task_names: tuple[str, ...]
    """Names of `Item.task_scores`, e.g. "interact", "like"."""
    model_version: str
    """"epoch.seq" of the ranker; empty when it did not answer."""
    experiment: str
    variant: str
    degraded_reason: str
    """Empty when the answer is whole; else what is missing, e.g. "ranker_unavailable"."""
    attempts: int
    """How often the call was tried; above 1 after retries."""
    latency_s: float
    """Seconds that the last attempt, the successful one, took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A piece of a document: context that you give, or what an answer was given."""

    text: str
    title: str = ""
    passage_id: str = ""
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier turn of a chat."""

    role: str
    """"user" or "assistant"."""
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the model draws its next token."""

    temperature: float = 0.0
    """0: greedy. At most 2."""
    top_p: float = 0.0
    """0 means 1 (no cut)."""
    max_tokens: int = 0
    """Most tokens to generate; 0 means the service's default."""
    seed: int = 0
    """0: not seeded."""
    stop: Sequence[str] = ()
    """Generation ends before any of these. At most 8."""


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of Generate; feedback about it names its `request_id`."""

    text: str
    request_id: str
    model_version: str
    prompt_version: str
    """"answer@v3"; empty when the prompt assembler did not answer."""
    experiment: str
    variant: str
    degraded_reason: str
    """Empty when the answer is whole; else, joined by commas, what is missing, e.g. "retrieval_unavailable"."""
    passages: tuple[Passage, ...]
    """Those in the prompt, in its order."""
    finish_reason: str
    """"stop" or "length"."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a user did about a recommendation or an answer. One object is one act: sending it again changes nothing."""

    request_id: str
    """Of the recommendation or answer."""
    user_id: Id
    """A text or a whole number: 1, 1.0 and "1" are one user."""
    kind: str
    """About an item: one of the kinds that the feature spec knows, e.g. "rating", "click", or "impression": the item came into the user's
    view. About an answer: "boolean" (value 0 or 1), "score" (value 0 to 1), "comment" (text) or "demonstration" (text: the answer as it
    should be)."""
    item_id: Id = ""
    """As `user_id`; empty for feedback about an answer."""
    value: float = 0.0
    """Depends on the kind: a rating's stars, 1 for a click."""
    text: str = ""
    """Of a comment or a demonstration, at most 16 KiB."""
    original_time_ms: int = 0
    """Unix milliseconds of the act in replayed data; 0 for live data."""
    feedback_id: str = field(default_factory=new_id)
    """1 to 128 bytes, unique per act of a user about a request; minted when you give none."""

    def to_proto(self, *, accepted_at_ms: int = 0) -> feedback_pb2.Feedback:
        """Return the contract's message. `accepted_at_ms` is 0 unless it is written straight to Kafka."""
        return feedback_pb2.Feedback(
            feedback_id=self.feedback_id,
            request_id=self.request_id,
            user_id=canonical_id(self.user_id, "user_id"),
            item_id=canonical_id(self.item_id, "item_id"),
            kind=self.kind,
            value=self.value,
            text=self.text,
            original_time_ms=self.original_time_ms,
            accepted_at_ms=accepted_at_ms,
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """The feedback collector's word that the broker has it."""

    feedback_id: str
    accepted_at_ms: int
    """Unix milliseconds at which the broker acknowledged it."""
    duplicate: bool
    """True when this feedback_id of the same user and request had been accepted before."""


def recommend_request(
    user_id: Id, candidates: Iterable[Id], limit: int, idempotency_key: str, *, context: Attributes = NONE, profile: Attributes = NONE
) -> router_pb2.RecommendRequest:
    """Return the contract's message; a key is minted when none is given."""
    request = router_pb2.RecommendRequest(
        user_id=canonical_id(user_id, "user_id"),
        candidates=canonical_ids(candidates, "candidates"),
        limit=limit,
        idempotency_key=idempotency_key or new_id(),
    )
    write_attributes("context", context, request.context)
    write_attributes("profile", profile, request.profile)
    return request


def recommendation_of(response: router_pb2.RecommendResponse, attempts: int, latency_s: float) -> Recommendation:
    """Return the answer as the caller sees it."""
    return Recommendation(
        response.request_id,
        Items(response.items),
        tuple(response.task_names[:]),
        response.model_version,
        response.experiment,
        response.variant,
        response.degraded_reason,
        attempts,
        latency_s,
    )


def generate_request(
    user_id: Id,
    question: str,
    *,
    task: str,
    history: Iterable[Turn],
    context: Iterable[Passage],
    retrieve: bool,
    retrieval_source: str,
    sampling: Sampling,
    adapter: str,
) -> router_pb2.GenerateRequest:
    """Return the contract's message."""
    return router_pb2.GenerateRequest(
        user_id=canonical_id(user_id, "user_id"),
        question=question,
        task=task,
        history=[chat_pb2.ChatMessage(role=turn.role, content=turn.content) for turn in history],
        context=[
            passage_pb2.Passage(passage_id=given.passage_id, title=given.title, text=given.text, score=given.score) for given in context
        ],
        retrieve=retrieve,
        retrieval_source=retrieval_source,
        sampling=chat_pb2.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop=sampling.stop,
        ),
        adapter=adapter,
    )


def passage_of(passage: passage_pb2.Passage) -> Passage:
    """Return a passage as the caller sees it."""
    return Passage(text=passage.text, title=passage.title, passage_id=passage.passage_id, score=passage.score)


def feedback_request(feedback: Sequence[Feedback]) -> collector_pb2.SubmitFeedbackRequest:
    """Return the contract's message."""
    return collector_pb2.SubmitFeedbackRequest(feedback=[each.to_proto() for each in feedback])


def receipts_of(response: collector_pb2.SubmitFeedbackResponse) -> list[Receipt]:
    """Return one receipt per feedback, in order."""
    return [Receipt(receipt.feedback_id, receipt.accepted_at_ms, receipt.duplicate) for receipt in response.receipts]
