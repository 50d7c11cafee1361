import pytest

from services.common.events.limits import (
    MAX_AHEAD_MS,
    MAX_ID_BYTES,
    check_id,
    check_ids,
    check_name,
    check_text,
    check_time,
    check_unit,
    check_written,
)

NOW_MS = 1_700_000_000_000


class Refused(Exception):
    pass


@pytest.mark.parametrize("value", ["a", "x" * MAX_ID_BYTES, "é" * (MAX_ID_BYTES // 2), "用" * 42 + "ab"])
def test_an_id_of_1_to_128_bytes_is_taken(value) -> None:
    check_id("user_id", value, Refused)
    check_ids("candidates", ["a", value], Refused)


@pytest.mark.parametrize(
    ("value", "size"), [("x" * 129, 129), ("é" * 65, 130), ("用" * 43, 129), ("𝄞" * 33, 132), ("x" * 100_000, 100_000)]
)
def test_another_id_is_refused_with_its_field_and_size(value, size) -> None:
    with pytest.raises(Refused, match=rf"^user_id: it has {size} bytes; it must have 1 to 128$"):
        check_id("user_id", value, Refused)
    with pytest.raises(Refused, match=rf"^candidates\[2\]: it has {size} bytes"):
        check_ids("candidates", ["a", "b", value, "c"], Refused)


def test_an_empty_id_is_refused_with_its_field() -> None:
    with pytest.raises(Refused, match=r"^user_id: it is empty; it must have 1 to 128 bytes$"):
        check_id("user_id", "", Refused)
    with pytest.raises(Refused, match=r"^candidates\[1\]: it is empty"):
        check_ids("candidates", ["a", ""], Refused)


def test_no_ids_at_all_break_no_rule_of_ids() -> None:
    check_ids("candidates", [], Refused)


def test_a_list_is_judged_as_its_ids_are_one_by_one() -> None:
    """The list has a short cut; it must not change a verdict."""
    for size in range(140):
        for letter in ("x", "é", "用", "𝄞"):
            verdicts = []
            for check in (lambda text: check_id("id", text, Refused), lambda text: check_ids("ids", ["a", text], Refused)):
                try:
                    check(letter * size)
                    verdicts.append(True)
                except Refused:
                    verdicts.append(False)
            assert verdicts[0] == verdicts[1] == (1 <= len((letter * size).encode()) <= MAX_ID_BYTES)


def test_a_text_may_be_allowed_to_be_empty() -> None:
    check_text("idempotency_key", "", 128, Refused, min_bytes=0)
    with pytest.raises(Refused, match="idempotency_key: it has 129 bytes; it must have 0 to 128"):
        check_text("idempotency_key", "k" * 129, 128, Refused, min_bytes=0)


@pytest.mark.parametrize("value", ["", " \n", "é" * 5])
def test_what_a_person_writes_is_not_blank_and_not_too_long(value) -> None:
    check_written("question", " why? ", 9, Refused)
    with pytest.raises(Refused, match=r"question: it has \d+ bytes; it must have 1 to 9, and not only blanks"):
        check_written("question", value, 9, Refused)


def test_a_time_is_positive_and_at_most_five_minutes_ahead() -> None:
    check_time("at_ms", 1, NOW_MS, Refused)
    check_time("at_ms", NOW_MS + MAX_AHEAD_MS, NOW_MS, Refused)
    for wrong, why in [(0, "0 is not a time"), (-5, "-5 is not a time"), (NOW_MS + MAX_AHEAD_MS + 1, "300001 ms in the future")]:
        with pytest.raises(Refused, match=f"at_ms: .*{why}"):
            check_time("at_ms", wrong, NOW_MS, Refused)


@pytest.mark.parametrize(("value", "unit"), [(NOW_MS // 1000, "seconds"), (NOW_MS * 1000, "microseconds"), (NOW_MS * 10**6, "nanoseconds")])
def test_a_time_in_another_unit_is_refused_by_its_name(value, unit) -> None:
    """Seconds are a time of January 1970 and were taken: the feedback was an orphan at once, of an exposure that was there."""
    for check in (lambda: check_time("at_ms", value, NOW_MS, Refused), lambda: check_unit("at_ms", value, Refused)):
        with pytest.raises(Refused, match=f"at_ms: {value} looks like {unit}; it must be a time in Unix milliseconds"):
            check()


@pytest.mark.parametrize("value", [0, 1, NOW_MS, 880_000_000_000, 4_102_444_800_000])
def test_a_time_in_milliseconds_is_taken(value) -> None:
    check_unit("at_ms", value, Refused)


@pytest.mark.parametrize("name", ["a", "7", "helpdesk_de-2", "a" * 64])
def test_a_name_of_small_letters_and_digits_is_taken(name) -> None:
    check_name("task", name, Refused)


@pytest.mark.parametrize("name", ["", "-a", "_a", "A", "a b", "é", "a" * 65, "a\n"])
def test_another_name_is_refused(name) -> None:
    with pytest.raises(Refused, match=r"task: .* is not 1 to 64 of a-z, 0-9"):
        check_name("task", name, Refused)
