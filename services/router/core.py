"""The router's decisions: what is a valid request, how the deadline is spent, what a retry gets, what is logged as exposed.

Free of I/O, clock and randomness: they are passed in. Knows neither gRPC nor Kafka nor how items are scored.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from services.common.events.attributes import Attributes, check
from services.common.events.limits import MAX_ID_BYTES, check_id, check_ids, check_text
from services.common.platform.errors import DeadlineExceeded, InvalidInput, Unavailable
from services.common.platform.ids import canonical_id, canonical_ids
from services.router.admission import Entered

# Less than this is not worth an attempt: two hops and the ranker take several milliseconds.
_MIN_ATTEMPT_S = 0.005


class RecommenderUnavailable(Unavailable):
    """The recommender could not be reached, or said UNAVAILABLE. One more attempt may help."""


class RecommenderTooSlow(DeadlineExceeded):
    """The recommender did not answer within the request's deadline. Retry with the same idempotency_key and a longer one."""


class Ranked(Protocol):
    """One ranked item. The router only passes it on and logs it, so that a client may hand its own type through."""

    @property
    def item_id(self) -> str:
        """The item's id."""
        ...

    @property
    def score(self) -> float:
        """What the list is sorted by."""
        ...

    @property
    def task_scores(self) -> Sequence[float]:
        """The ranker's probabilities; empty when it did not answer."""
        ...

    @property
    def reasons(self) -> Sequence[str]:
        """Through which channel the item came."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One Recommend request. `limit` 0 means the default; no candidates means that the mesh recalls items itself."""

    user_id: str
    candidates: tuple[str, ...] = ()
    limit: int = 0
    idempotency_key: str = ""
    context: Attributes = field(default_factory=dict)
    """Of this request alone."""
    profile: Attributes = field(default_factory=dict)
    """The user's, where the caller brings it; empty: the mesh's own."""


class LoggedItems(Protocol):
    """What exposures.v1 says of the items of an answer: columns, in the items' order."""

    @property
    def item_ids(self) -> Sequence[str]:
        """The items' ids."""
        ...

    @property
    def scores(self) -> Sequence[float]:
        """What the list is sorted by; empty when the ranker did not answer."""
        ...

    @property
    def reasons(self) -> Sequence[str]:
        """Each item's reasons, joined by commas."""
        ...


class PackedItems(Protocol):
    """The items of an answer, ready to be passed on: nothing here looks at each of them."""

    @property
    def num_items(self) -> int:
        """How many there are."""
        ...

    @property
    def shown(self) -> bytes:
        """The part of the answer to the caller that holds them, serialised."""
        ...

    @property
    def exposed(self) -> bytes:
        """The part of the exposure that says what they were scored from, serialised."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What the recommender answered: with its items one by one, or `packed`.

    `features_block` is opaque; it stands for `items` in their order, or is empty. When the answer is packed, these fields are empty but for
    the version and the reason.
    """

    items: Sequence[Ranked]
    task_names: Sequence[str]
    model_version: str
    degraded_reason: str
    features_block: bytes
    schema_hash: str
    logged: LoggedItems | None = None
    """`items` as columns; None when the recommender did not send them."""
    packed: PackedItems | None = None

    @property
    def num_items(self) -> int:
        """How many items there are, packed or not."""
        return len(self.items) if self.packed is None else self.packed.num_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What the caller gets."""

    request_id: str
    experiment: str
    variant: str
    ranking: Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What was shown to whom, for the log."""

    user_id: str
    exposed_at_ms: int
    idempotency_key: str
    candidates_given: bool
    recommendation: Recommendation
    context: Attributes = field(default_factory=dict)
    profile: Attributes = field(default_factory=dict)


class Recommender(Protocol):
    """Ranks items."""

    async def recommend(self, query: Query, *, timeout_s: float, wait_for_ready: bool) -> Ranking:
        """Answer within `timeout_s`. `wait_for_ready` waits for a connection instead of failing at once.

        Raises:
            RecommenderUnavailable, RecommenderTooSlow, InvalidInput, Overloaded.
        """
        ...


class Entrance(Protocol):
    """Decides how many requests are worked on at once: services.router.admission."""

    def enter(self, budget_s: float) -> Entered:
        """Let a request in that has so many seconds left, or raise Overloaded."""
        ...

    def left(self, entered: Entered, *, is_answered: bool) -> None:
        """Note its end."""
        ...


class ExposureLog(Protocol):
    """Takes exposures without ever blocking a request."""

    def append(self, exposure: Exposure) -> None:
        """Keep the exposure for Kafka, or drop and count it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds and defaults of requests; times in seconds."""

    max_candidates: int
    default_limit: int
    default_deadline_s: float
    max_deadline_s: float


def checked(query: Query, limits: Limits) -> Query:
    """Return the query with its ids in canonical form and its limit filled in.

    Raises:
        InvalidInput: an id is empty or longer than 128 bytes, too many or repeated candidates, too large a limit, or an attribute that
            breaks its limits. Names the field.
    """
    user_id, candidates = canonical_id(query.user_id), canonical_ids(query.candidates)
    check_id("user_id", user_id, InvalidInput)
    check_text("idempotency_key", query.idempotency_key, MAX_ID_BYTES, InvalidInput, min_bytes=0)
    num_candidates = len(candidates)
    if num_candidates > limits.max_candidates:
        raise InvalidInput(f"candidates: {num_candidates} are more than the {limits.max_candidates} that one request may name")
    if query.limit > limits.max_candidates:
        raise InvalidInput(f"limit: {query.limit} is more than {limits.max_candidates}")
    check_ids("candidates", candidates, InvalidInput)
    if len(set(candidates)) != num_candidates:
        raise InvalidInput(f"candidates: {_first_repeated(candidates)!r} is named twice")
    if num_candidates:
        limit = min(query.limit or num_candidates, num_candidates)
    else:
        limit = query.limit or min(limits.default_limit, limits.max_candidates)
    check("context", query.context, InvalidInput)
    check("profile", query.profile, InvalidInput)
    return replace(query, user_id=user_id, candidates=candidates, limit=limit)


def _first_repeated(values: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]


class RecentAnswers:
    """Answers by (user, idempotency key), for a while: a retry gets what the first attempt got, and is not exposed twice."""

    def __init__(self, *, ttl_s: float, max_entries: int) -> None:
        """Keep at most `max_entries` answers, each for `ttl_s`."""
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str], tuple[float, bytes, Recommendation]] = OrderedDict()

    def get(self, query: Query, now_s: float) -> Recommendation | None:
        """Return the kept answer, or None.

        Raises:
            InvalidInput: the key was used for another request.
        """
        entry = self._entries.get((query.user_id, query.idempotency_key))
        if entry is None or entry[0] < now_s:
            return None
        refuse_other_request(query, entry[1])
        return entry[2]

    def put(self, query: Query, answer: Recommendation, now_s: float) -> None:
        """Keep an answer; drop what is too old, and the oldest beyond the bound."""
        key = (query.user_id, query.idempotency_key)
        self._entries.pop(key, None)
        self._entries[key] = (now_s + self._ttl_s, fingerprint(query), answer)
        while self._entries and (len(self._entries) > self._max_entries or next(iter(self._entries.values()))[0] < now_s):
            self._entries.popitem(last=False)


def fingerprint(query: Query) -> bytes:
    """Return what tells two requests under one idempotency key apart: 16 bytes, since Python's own hash of -1 is that of -2."""
    parts = (query.candidates, query.limit, sorted(query.context.items()), sorted(query.profile.items()))
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def refuse_other_request(query: Query, kept_fingerprint: bytes) -> None:
    """Raise InvalidInput when the key belongs to another request."""
    if fingerprint(query) != kept_fingerprint:
        raise InvalidInput("idempotency_key: it was used for a request with other candidates, limit, context or profile; use a new key")


class Router:
    """Answers Recommend."""

    def __init__(
        self,
        recommender: Recommender,
        exposures: ExposureLog,
        recent: RecentAnswers,
        entrance: Entrance,
        *,
        limits: Limits,
        variant: str,
        monotonic_s: Callable[[], float],
        wall_ms: Callable[[], int],
        new_request_id: Callable[[int], str],
    ) -> None:
        """The clocks and `new_request_id` (Unix milliseconds -> UUIDv7) are passed in, so that tests choose them."""
        self._recommender = recommender
        self._exposures = exposures
        self._recent = recent
        self._entrance = entrance
        self._limits = limits
        self._variant = variant
        self._monotonic_s = monotonic_s
        self._wall_ms = wall_ms
        self._new_request_id = new_request_id
        self._running: dict[tuple[str, str], tuple[bytes, asyncio.Future[Recommendation]]] = {}

    async def recommend(self, query: Query, *, remaining_s: float | None) -> Recommendation:
        """Rank, log the exposure, and answer.

        Args:
            query: as it came.
            remaining_s: seconds until the caller's deadline; None when it set none.
        Raises:
            InvalidInput: see `checked`.
            DeadlineExceeded: the request's time is over. Retry with the same idempotency_key and a longer deadline.
            Unavailable: the recommender could not be reached, twice. Retry with the same idempotency_key.
            Overloaded: more requests are under way than are answered in time, or the recommender sheds load.
        """
        query = checked(query, self._limits)
        budget_s = self._limits.default_deadline_s if remaining_s is None else min(remaining_s, self._limits.max_deadline_s)
        deadline_s = self._monotonic_s() + budget_s
        if not query.idempotency_key:
            return await self._answer(query, deadline_s)
        kept = self._recent.get(query, self._monotonic_s())
        if kept is not None:
            return kept
        return await self._answer_once(query, deadline_s)

    async def _answer_once(self, query: Query, deadline_s: float) -> Recommendation:
        """Of attempts with one key that overlap, the first asks the recommender and the others wait for it, each as long as it may."""
        key = (query.user_id, query.idempotency_key)
        while (running := self._running.get(key)) is not None:
            refuse_other_request(query, running[0])
            try:
                async with asyncio.timeout(deadline_s - self._monotonic_s()):
                    return await asyncio.shield(running[1])
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "the first attempt with this idempotency_key has no answer yet; retry with the same key and a longer deadline"
                ) from error
            except DeadlineExceeded:
                # The first attempt had less time than this one, which asks anew.
                if deadline_s - self._monotonic_s() < _MIN_ATTEMPT_S:
                    raise
                # Another one that waited may have asked and been answered by now.
                if (kept := self._recent.get(query, self._monotonic_s())) is not None:
                    return kept
        future: asyncio.Future[Recommendation] = asyncio.get_running_loop().create_future()
        self._running[key] = (fingerprint(query), future)
        try:
            answer = await self._answer(query, deadline_s)
        except BaseException as error:
            # The others must not be cancelled because the first caller went away: they are told to try again.
            gone = Unavailable("the first attempt with this idempotency_key was cancelled; retry with the same key")
            future.set_exception(error if isinstance(error, Exception) else gone)
            future.exception()
            raise
        finally:
            del self._running[key]
        future.set_result(answer)
        self._recent.put(query, answer, self._monotonic_s())
        return answer

    async def _answer(self, query: Query, deadline_s: float) -> Recommendation:
        entered = self._entrance.enter(deadline_s - self._monotonic_s())
        is_answered = False
        try:
            ranking = await self._rank(query, deadline_s)
            is_answered = True
        finally:
            self._entrance.left(entered, is_answered=is_answered)
        now_ms = self._wall_ms()
        answer = Recommendation(request_id=self._new_request_id(now_ms), experiment="", variant=self._variant, ranking=ranking)
        if ranking.num_items:
            exposure = Exposure(
                user_id=query.user_id,
                exposed_at_ms=now_ms,
                idempotency_key=query.idempotency_key,
                candidates_given=bool(query.candidates),
                recommendation=answer,
                context=query.context,
                profile=query.profile,
            )
            self._exposures.append(exposure)
        return answer

    async def _rank(self, query: Query, deadline_s: float) -> Ranking:
        """Ask once, and once more when the recommender was unavailable and time is left."""
        try:
            return await self._attempt(query, deadline_s, wait_for_ready=False)
        except RecommenderUnavailable as unavailable:
            if deadline_s - self._monotonic_s() < _MIN_ATTEMPT_S:
                raise
            try:
                return await self._attempt(query, deadline_s, wait_for_ready=True)
            except RecommenderTooSlow:
                raise unavailable from None  # most likely there was no connection all the time: the cause, not the clock

    async def _attempt(self, query: Query, deadline_s: float, *, wait_for_ready: bool) -> Ranking:
        left_s = deadline_s - self._monotonic_s()
        if left_s < _MIN_ATTEMPT_S:
            raise RecommenderTooSlow("no time is left before the deadline; retry with the same idempotency_key and a longer one")
        return await self._recommender.recommend(query, timeout_s=left_s, wait_for_ready=wait_for_ready)
