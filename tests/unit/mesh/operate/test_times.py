import pytest

from services.common.platform.errors import InvalidInput
from services.common.platform.ids import uuid7
from services.mesh.operate.times import iso, parse_time, request_time_ms

NOW_MS = 1_795_310_000_000


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("90s", NOW_MS - 90_000),
        ("10m", NOW_MS - 600_000),
        ("2h", NOW_MS - 7_200_000),
        ("1d", NOW_MS - 86_400_000),
        ("2026-11-22T01:00:00+00:00", 1_795_309_200_000),
        ("@1795309200000", 1_795_309_200_000),
    ],
)
def test_a_moment_is_written_as_an_age_a_date_or_a_number(text: str, expected_ms: int) -> None:
    assert parse_time(text, now_ms=NOW_MS) == expected_ms


@pytest.mark.parametrize("text", ["", "soon", "10", "-5m", "10 minutes", "2026-13-01", "@-1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no time"):
        parse_time(text, now_ms=NOW_MS)


def test_a_moment_to_come_is_refused() -> None:
    with pytest.raises(InvalidInput, match="future"):
        parse_time(f"@{NOW_MS + 1}", now_ms=NOW_MS)


def test_a_request_id_carries_its_time() -> None:
    assert request_time_ms(uuid7(NOW_MS)) == NOW_MS


@pytest.mark.parametrize("text", ["42", "", "4f6ff9b2-9f3b-4bd1-8f3a-2f8a3f0f3b7e"])
def test_what_is_no_uuid7_is_no_request_id(text: str) -> None:
    with pytest.raises(InvalidInput):
        request_time_ms(text)


def test_an_unknown_moment_is_shown_as_nothing() -> None:
    assert (iso(0), iso(1_795_309_200_123)) == ("", "2026-11-22T01:00:00.123Z")
