from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_reasons import REDRIVE_CLAIMED, REDRIVEN
from services.common.events.dead_letters import REDRIVEN_HEADER, dead_letter
from services.common.events.limits import MAX_RECORD_BYTES
from services.common.platform.kafka_batches import CONTENT_TYPE_UNREADABLE
from services.mesh.operate.letter_book import Letter, LetterBook, note, unresolved, won


def letter(offset: int, *, reason: str = "orphan", value: bytes = b"v", **more) -> DeadLetter:
    return dead_letter(topic="feedback.v1", partition=0, offset=offset, reason=reason, detail="", value=value, failed_at_ms=offset, **more)


def book_of(*bodies: DeadLetter) -> LetterBook:
    book = LetterBook()
    for offset, body in enumerate(bodies):
        book.add(offset, body)
    return book


def offsets(letters: list[Letter]) -> list[int]:
    return [each.name.source_offset for each in letters]


def test_a_letter_that_its_writer_repeated_is_one_letter() -> None:
    book = book_of(letter(7), letter(7), letter(7, reason="malformed"))
    assert [str(each.name) for each in book.pending()] == ["feedback.v1/0/7/orphan", "feedback.v1/0/7/malformed"]


def test_a_letter_with_a_note_is_never_pending_again() -> None:
    first = Letter(0, letter(1))
    book = book_of(letter(1), letter(2), note(first, REDRIVE_CLAIMED, "run", 5), note(first, REDRIVEN, "run", 6))
    assert offsets(book.pending()) == [2]
    assert book.summary()[0] == {
        "reason": "orphan",
        "letters": 2,
        "redriven": 1,
        "came_back": 0,
        "not_redrivable": 0,
        "first_ms": 1,
        "last_ms": 2,
    }


def test_letters_whose_record_is_not_whole_are_not_pending() -> None:
    cut = dead_letter(
        topic="feedback.v1", partition=0, offset=2, reason="malformed", detail="bad", value=b"x" * (MAX_RECORD_BYTES + 1), failed_at_ms=0
    )
    book = book_of(letter(1, value=b""), cut)
    assert book.pending() == []
    assert [each.state for each in book.letters.values()] == ["its record was not kept", "its record was cut"]


def test_what_stands_for_records_that_could_not_be_decoded_is_not_put_back() -> None:
    stand_in = letter(1, reason="malformed", value=b"\x00offsets 5 to 9", headers=[("content-type", CONTENT_TYPE_UNREADABLE.encode())])
    book = book_of(stand_in, letter(2), letter(3, value=b""))
    assert offsets(book.pending(again=True)) == [2]
    assert offsets(book.not_redrivable()) == [1, 3] and offsets(book.not_redrivable(reason="orphan")) == [3]
    assert book.letters[Letter(0, stand_in).name].state.startswith("it stands for records that could not be decoded")


def test_a_record_that_failed_again_is_pending_only_when_asked_for() -> None:
    book = book_of(letter(9, headers=[(REDRIVEN_HEADER, b"feedback.v1/0/1/orphan")]))
    assert book.pending() == []
    assert offsets(book.pending(again=True)) == [9]


def test_a_reason_selects() -> None:
    assert offsets(book_of(letter(1), letter(2, reason="malformed")).pending(reason="malformed")) == [2]


def test_of_two_runs_at_once_the_first_claim_counts() -> None:
    first = Letter(0, letter(1))
    book = book_of(letter(1), note(first, REDRIVE_CLAIMED, "a", 1_000), note(first, REDRIVE_CLAIMED, "b", 1_001))
    assert offsets(won(book.pending(), "a", since_ms=0)) == [1]
    assert won(book.pending(), "b", since_ms=0) == []


def test_a_claim_of_a_run_that_is_over_does_not_count() -> None:
    first = Letter(0, letter(1))
    book = book_of(letter(1), note(first, REDRIVE_CLAIMED, "dead", 1_000), note(first, REDRIVE_CLAIMED, "b", 90_000))
    assert offsets(won(book.pending(), "b", since_ms=30_000)) == [1]


def test_claims_are_told_apart_by_age() -> None:
    old, new = Letter(0, letter(1)), Letter(1, letter(2))
    book = book_of(letter(1), letter(2), letter(3), note(old, REDRIVE_CLAIMED, "a", 1_000), note(new, REDRIVE_CLAIMED, "b", 95_000))
    fresh, stale = unresolved(book.pending(), now_ms=100_000, claim_ttl_ms=60_000)
    assert (offsets(fresh), offsets(stale)) == ([2], [1])


def test_a_note_about_a_letter_that_is_gone_is_ignored() -> None:
    assert book_of(note(Letter(0, letter(1)), REDRIVEN, "run", 1)).letters == {}
