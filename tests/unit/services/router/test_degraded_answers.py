from services.common.platform import telemetry
from services.router import degraded_answers
from services.router.degraded_answers import DegradedAnswers


def test_every_reason_is_logged_at_once_and_then_once_in_ten_seconds_with_its_number(monkeypatch, caplog):
    now_s = 100.0
    monkeypatch.setattr(degraded_answers.time, "monotonic", lambda: now_s)
    answers = DegradedAnswers(telemetry.disabled("router"))
    for reason in ("ranker_unavailable", "ranker_unavailable", "features_unavailable", "ranker_unavailable"):
        answers.note(reason)
    assert [record.getMessage() for record in caplog.records] == [
        "1 degraded answers: ranker_unavailable",
        "1 degraded answers: features_unavailable",
    ]
    now_s += 10.0
    answers.note("ranker_unavailable")
    assert caplog.records[-1].getMessage() == "3 degraded answers: ranker_unavailable"
