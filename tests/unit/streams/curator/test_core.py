from dataclasses import replace

import pytest
from tunemesh.events.v1 import example_pb2

from services.common.events import dead_letter_reasons as reasons
from services.common.events.chat import Message
from services.common.events.feedback import Feedback
from services.common.events.generation import Generation
from streams.curator.codec import write_example
from streams.curator.core import CurateConfig, CuratorPartition, example_of
from streams.curator.model import Example
from streams.partitioned.records import DeadLetter, Record
from tests.unit.streams.partitioned.test_intake import an_intake

T0 = 1_700_000_000_000
CONFIG = CurateConfig(window_ms=10_000, wait_ms=2_000)
GENERATION = Generation(
    request_id="r1",
    user_id="u",
    task="helpdesk",
    question="How long may I keep a film?",
    messages=(Message("system", "Be brief."), Message("user", "How long may I keep a film?")),
    answer="A week.",
    finish_reason="stop",
    model_version="M",
    prompt_version="answer@v1",
    passage_ids=(),
    finished_at_ms=T0,
)
THUMB = Feedback(feedback_id="f1", request_id="r1", user_id="u", item_id="", kind="boolean", value=0.0, text="", accepted_at_ms=T0 + 100)
DEMONSTRATION = replace(THUMB, kind="demonstration", text="Nine days.")


class Seen(set):
    def has(self, example_id: str) -> bool:
        return example_id in self


class Kept:
    """Answers in memory, with the room of `max_answers`."""

    def __init__(self, max_answers: int = 1_000) -> None:
        self.generations: dict[str, tuple[Generation, int]] = {}
        self.max_answers = max_answers
        self.flushed_to = 0

    def offset_of(self, request_id: str) -> int | None:
        return self.generations[request_id][1] if request_id in self.generations else None

    def get(self, request_id: str) -> Generation | None:
        return self.generations[request_id][0] if request_id in self.generations else None

    def put(self, generation: Generation, record: Record) -> None:
        self.generations[generation.request_id] = (generation, record.offset)

    def flush(self, next_offset: int) -> int:
        self.flushed_to = next_offset
        oldest = list(self.generations)[: max(0, len(self.generations) - self.max_answers)]
        for request_id in oldest:
            del self.generations[request_id]
        return len(oldest)

    def expire(self, before_ms: int) -> int:
        gone = [request_id for request_id, (generation, _) in self.generations.items() if generation.finished_at_ms < before_ms]
        for request_id in gone:
            del self.generations[request_id]
        return len(gone)


class Bench:
    """One partition with its two logs; what is fed is appended and read at once."""

    def __init__(
        self,
        config: CurateConfig = CONFIG,
        seen: Seen | None = None,
        start: tuple[int, int] = (0, 0),
        *,
        answers: Kept | None = None,
        max_pending_bytes: int = 1 << 20,
    ) -> None:
        self.seen = Seen() if seen is None else seen
        self.answers = Kept() if answers is None else answers
        self.generations, self.feedback = start
        self.intake = an_intake(start, max_pending_bytes=max_pending_bytes)
        self.counts = self.intake.counts
        self.core = CuratorPartition(config, self.intake, self.answers, self.seen)

    def answer(self, generation: Generation = GENERATION, *, size: int = 10):
        self.generations += 1
        return self.core.on_generation(generation, Record("generations.v1", 0, self.generations - 1, b"u", b"g" * size, ()))

    def say(self, feedback: Feedback = DEMONSTRATION):
        self.feedback += 1
        return self.core.on_feedback(feedback, Record("feedback.v1", 0, self.feedback - 1, b"u", b"f", ()))

    def tick(self, at: int, *, read_to_end: bool = True):
        beyond = 0 if read_to_end else 1
        return self.core.on_tick(T0 + at, (self.generations + beyond, self.feedback + beyond))


def only(emissions):
    (emission,) = emissions
    return emission


def letter_of(emissions) -> DeadLetter:
    letter = only(emissions)
    assert isinstance(letter, DeadLetter)
    return letter


def test_a_demonstration_becomes_an_example_of_what_should_have_been_said():
    bench = Bench()
    assert bench.answer() == []
    example = only(bench.say())
    assert isinstance(example, Example) and example.is_demonstration
    assert (example.answer, example.generation, example.feedback) == ("Nine days.", GENERATION, DEMONSTRATION)
    written = example_pb2.LlmExample.FromString(write_example(example))
    assert (written.answer, written.user_id) == ("Nine days.", DEMONSTRATION.user_id)
    assert bench.counts == {"generations": 1, "feedback": 1, "demonstrations": 1}


@pytest.mark.parametrize("feedback", [THUMB, replace(THUMB, kind="score", value=0.3), replace(THUMB, kind="comment", text="Wrong.")])
def test_a_judgement_becomes_an_example_of_what_was_said(feedback):
    bench = Bench()
    bench.answer()
    example = only(bench.say(feedback))
    assert not example.is_demonstration and example.answer == "A week."


def test_feedback_that_comes_before_its_answer_waits_for_it():
    bench = Bench()
    assert bench.say() == [] and bench.say(replace(THUMB, feedback_id="f2")) == []
    assert [example.feedback.feedback_id for example in bench.answer()] == ["f1", "f2"]
    assert bench.counts["feedback"] == 2


def test_feedback_about_items_is_stepped_over():
    bench = Bench()
    bench.answer()
    assert bench.say(replace(THUMB, item_id="i", kind="rating", value=5.0)) == []
    assert bench.tick(400)[1].feedback_committable == 1 and bench.counts["feedback"] == 0


def test_misplaced_feedback_is_left_to_the_joiner_who_forwards_it():
    bench = Bench()
    assert bench.say(replace(THUMB, user_id="elsewhere")) == []
    assert bench.counts["misplaced"] == 1 and bench.tick(400)[1].feedback_committable == 1


def test_an_example_that_stands_in_the_log_is_not_written_again():
    seen = Seen({example_of(GENERATION, DEMONSTRATION).example_id})
    bench = Bench(seen=seen)
    bench.answer()
    assert bench.say() == [] and bench.counts["duplicates"] == 1
    assert isinstance(only(bench.say(replace(DEMONSTRATION, text="Ten days."))), Example)


def test_equal_examples_have_equal_ids_whoever_gave_them_and_different_ones_do_not():
    same = example_of(replace(GENERATION, request_id="r2", user_id="v"), replace(DEMONSTRATION, feedback_id="f9", text=" Nine days.\n"))
    assert same.example_id == example_of(GENERATION, DEMONSTRATION).example_id
    others = [
        (replace(GENERATION, task="answer"), DEMONSTRATION),
        (replace(GENERATION, messages=(Message("user", "How long?"),)), DEMONSTRATION),
        (GENERATION, replace(DEMONSTRATION, text="Ten days.")),
        (GENERATION, THUMB),
        (GENERATION, replace(THUMB, value=1.0)),
        (GENERATION, replace(THUMB, kind="comment", text="x")),
    ]
    assert len({example_of(*other).example_id for other in others} | {same.example_id}) == len(others) + 1


@pytest.mark.parametrize(
    ("generation", "feedback", "kind"),
    [
        (GENERATION, replace(DEMONSTRATION, text="Ask jane@example.com."), "email"),
        (GENERATION, replace(THUMB, kind="comment", text="call me: +44 20 7946 0958"), "phone"),
        (replace(GENERATION, question="Is 4111 1111 1111 1111 my card?"), DEMONSTRATION, "card"),
        (replace(GENERATION, answer="GB82 WEST 1234 5698 7654 32"), THUMB, "iban"),
        (replace(GENERATION, messages=(Message("user", "I am jane@example.com"), *GENERATION.messages)), DEMONSTRATION, "email"),
    ],
)
def test_personal_data_is_set_aside_without_repeating_it(generation, feedback, kind):
    bench = Bench()
    bench.answer(generation)
    letter = letter_of(bench.say(feedback))
    assert (letter.reason, letter.without_content, letter.feedback_id) == (reasons.PII, True, "f1")
    assert letter.detail.startswith("it holds ") and kind in letter.detail and bench.counts[f"pii_{kind}"] == 1


def test_what_the_operator_wrote_is_not_looked_at_for_personal_data():
    messages = (Message("system", "We are desk@example.com"), Message("user", "Desk: desk@example.com\n\nHow long may I keep a film?"))
    bench = Bench()
    bench.answer(replace(GENERATION, messages=messages))
    assert isinstance(only(bench.say()), Example)


def test_passages_that_came_with_the_request_are_looked_at():
    messages = (Message("system", "Be brief."), Message("user", "Order 7 of jane@example.com\n\nWhere is it?"))
    bench = Bench()
    bench.answer(replace(GENERATION, messages=messages, context_given=True))
    assert letter_of(bench.say()).reason == reasons.PII


def test_the_answer_that_a_demonstration_corrects_may_hold_anything():
    bench = Bench()
    bench.answer(replace(GENERATION, answer="Ask jane@example.com"))
    assert isinstance(only(bench.say()), Example)


def test_feedback_of_another_user_is_set_aside():
    bench = Bench()
    bench.answer()
    assert letter_of(bench.say(replace(THUMB, user_id="v"))).reason == reasons.USER_MISMATCH


def test_a_judgement_of_an_answer_that_the_machine_broke_off_is_none_but_a_demonstration_of_it_counts():
    bench = Bench()
    bench.answer(replace(GENERATION, finish_reason="error"))
    assert bench.say(THUMB) == [] and bench.counts["broken_answers"] == 1
    assert isinstance(only(bench.say()), Example)


def test_feedback_whose_answer_does_not_come_is_an_orphan_once_the_answers_were_read_past_its_time():
    bench = Bench()
    bench.say()
    assert bench.tick(0)[0] == bench.tick(2_399)[0] == []
    assert bench.tick(9_000, read_to_end=False)[0] == []  # the answer may stand in what is still unread
    letter = letter_of(bench.tick(2_400)[0])
    assert (letter.reason, letter.feedback_id, letter.without_content) == (reasons.ORPHAN, "f1", False)


def test_feedback_is_committed_up_to_the_oldest_that_waits_and_answers_when_the_store_has_them():
    bench = Bench()
    bench.answer()
    bench.say()
    bench.say(replace(THUMB, request_id="r2", accepted_at_ms=T0 + 200))
    bench.say(replace(THUMB, feedback_id="f3"))
    cut = bench.tick(400)[1]
    assert (cut.generations_committable, cut.feedback_committable, bench.answers.flushed_to) == (1, 1, 1)
    bench.answer(replace(GENERATION, request_id="r2", finished_at_ms=T0 + 150))
    cut = bench.tick(500)[1]
    assert (cut.generations_committable, cut.feedback_committable, bench.answers.flushed_to) == (2, 3, 2)


def test_what_is_read_again_after_a_death_joins_as_before_and_is_not_written_twice():
    bench = Bench(replace(CONFIG, wait_ms=60_000))
    bench.answer()
    bench.say(replace(THUMB, request_id="late"))
    bench.say()
    cut = bench.tick(5_000)[1]
    assert (cut.generations_committable, cut.feedback_committable) == (1, 0)
    again = Bench(replace(CONFIG, wait_ms=60_000), bench.seen, (1, 0), answers=bench.answers)
    again.say(replace(THUMB, request_id="late"))
    assert again.say() == [] and again.counts["duplicates"] == 1
    # Died before the commit of the answer: it is read a second time, and is no second answer to its request.
    uncommitted = Bench(replace(CONFIG, wait_ms=60_000), bench.seen, answers=bench.answers)
    assert uncommitted.answer() == [] and uncommitted.counts["duplicate_generations"] == 0
    assert uncommitted.answer() == [] and uncommitted.counts["duplicate_generations"] == 1


def test_feedback_days_after_its_answer_is_joined_within_the_window():
    day_ms = 24 * 3_600_000
    bench = Bench(CurateConfig(window_ms=7 * day_ms, wait_ms=2_000))
    bench.answer()
    bench.tick(6 * day_ms)
    assert isinstance(only(bench.say(replace(DEMONSTRATION, accepted_at_ms=T0 + 6 * day_ms))), Example)


def test_feedback_after_the_window_is_an_orphan_whether_the_store_still_has_the_answer_or_not():
    bench = Bench()
    bench.answer()
    late = replace(THUMB, accepted_at_ms=T0 + 11_000)
    letter = letter_of(bench.say(late))
    assert letter.reason == reasons.ORPHAN and "ended more than 10000 ms before" in letter.detail
    bench.tick(11_000)
    assert bench.answers.generations == {} and bench.say(late) == bench.tick(11_000)[0] == []
    assert letter_of(bench.tick(13_400)[0]).reason == reasons.ORPHAN


def test_an_answer_is_kept_while_feedback_of_its_window_is_still_unread():
    bench = Bench()
    bench.answer()
    bench.core.on_tick(T0 + 20_000, (1, 5))
    assert isinstance(only(bench.say()), Example)


def test_answers_that_go_for_want_of_room_are_counted():
    bench = Bench(answers=Kept(4))
    for number in range(10):
        bench.answer(replace(GENERATION, request_id=f"r{number}"))
    bench.tick(400)
    assert bench.counts["retired_early"] == 6
    bench.say(replace(DEMONSTRATION, request_id="r9"))
    assert bench.counts["demonstrations"] == 1


def test_memory_is_bounded_by_giving_up_on_the_oldest_waiting_feedback():
    bench = Bench(max_pending_bytes=4_000)
    letters = [letter for number in range(4) for letter in bench.say(replace(THUMB, feedback_id=f"f{number}", request_id=f"r{number}"))]
    assert [letter.feedback_id for letter in letters] == ["f0", "f1"] and "no room" in letters[0].detail


def test_reading_feedback_far_ahead_of_the_answers_stops_while_memory_is_half_full():
    bench = Bench(max_pending_bytes=4_000)
    assert bench.intake.may_read_subjects() and bench.intake.may_read_feedback()
    bench.say()
    bench.say(replace(THUMB, feedback_id="f2"))
    assert bench.intake.may_read_subjects() and not bench.intake.may_read_feedback()
    bench.tick(100)
    assert bench.intake.may_read_feedback()


def test_a_record_that_was_read_before_is_stepped_over():
    bench = Bench(start=(5, 5))
    record = Record("generations.v1", 0, 4, b"u", b"g", ())
    assert bench.core.on_generation(GENERATION, record) == [] and bench.counts["generations"] == 0
    assert bench.intake.on_unusable_feedback(Record("feedback.v1", 0, 4, b"u", b"f", ()), reasons.MALFORMED, "x") == []


def test_unusable_records_are_set_aside_or_stepped_over():
    bench = Bench()
    assert (
        letter_of(bench.intake.on_unusable_subject(Record("generations.v1", 0, 0, b"u", b"g", ()), reasons.MALFORMED, "x")).reason
        == reasons.MALFORMED
    )
    assert (
        letter_of(bench.intake.on_unusable_feedback(Record("feedback.v1", 0, 0, b"u", b"f", ()), reasons.MALFORMED, "x")).reason
        == reasons.MALFORMED
    )
    assert bench.core.on_feedback(None, Record("feedback.v1", 0, 1, b"u", b"?", ())) == []
    assert bench.core.on_tick(T0, (1, 2))[1].feedback_committable == 2
