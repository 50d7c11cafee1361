import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from services.common.platform import telemetry
from services.common.platform.errors import ConfigurationError
from services.common.platform.secrets import Redactor
from services.common.platform.stderr_log import Damper, configure_logging
from services.common.platform.telemetry_files import read_spans
from services.common.platform.traceparent import current_traceparent, outgoing_metadata, sampled_link, traceparent_of
from tests.limits import seconds
from tests.processor_time import quickest_s

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def recording(folder: Path, ratio: float = 1.0) -> telemetry.Telemetry:
    return telemetry.configure("probe", SimpleNamespace(telemetry_dir=folder, telemetry_sample_ratio=ratio, otlp_endpoint=None))


def test_nested_spans_are_written_with_their_edges(tmp_path):
    signals = recording(tmp_path)
    with signals.span("outer", kind=SpanKind.SERVER, attributes={"a": 1}), signals.span("inner"):
        pass
    signals.shutdown()
    outer, inner = read_spans(tmp_path)
    assert (outer["name"], inner["name"]) == ("outer", "inner")
    assert inner["parent_id"] == outer["span_id"] and inner["trace_id"] == outer["trace_id"]
    assert outer["parent_id"] == "" and outer["attributes"] == {"a": 1}
    assert (outer["service"], outer["kind"]) == ("probe", "SERVER")
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_span_continues_the_trace_of_a_traceparent(tmp_path):
    signals = recording(tmp_path)
    with signals.span("work", parent=SAMPLED):
        assert current_traceparent().startswith("00-0af7651916cd43dd8448eb211c80319c-")
        assert outgoing_metadata() == (("traceparent", current_traceparent()),)
    signals.shutdown()
    (span,) = read_spans(tmp_path)
    assert (span["trace_id"], span["parent_id"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def test_a_sender_that_does_not_sample_is_followed_although_our_own_ratio_is_one(tmp_path):
    signals = recording(tmp_path)
    with signals.span("work", parent=UNSAMPLED), signals.span("child"):
        assert current_traceparent() == UNSAMPLED
    signals.shutdown()
    assert read_spans(tmp_path) == []


def test_a_trace_that_is_not_sampled_tells_the_next_service_so(tmp_path):
    signals = recording(tmp_path, ratio=0.0)
    with signals.span("work") as span:
        assert not span.is_recording()
        assert current_traceparent().endswith("-00")
    signals.shutdown()
    assert read_spans(tmp_path) == []


def test_about_the_given_share_of_new_traces_is_recorded(tmp_path):
    signals = recording(tmp_path, ratio=0.3)
    for _ in range(1000):
        with signals.span("work"):
            pass
    signals.shutdown()
    assert 220 < len(read_spans(tmp_path)) < 380


@pytest.mark.parametrize(("flags", "is_sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("fe", False), ("ff", True)])
def test_a_link_is_kept_by_the_bit_of_the_flags_and_not_by_their_text(flags, is_sampled):
    """OpenTelemetry for Python writes 02 and 03: links of unsampled traces were recorded."""
    assert (sampled_link(SAMPLED.removesuffix("01") + flags) is not None) == is_sampled


def test_a_header_without_a_value_is_no_trace():
    """It became the text "None"; the CloudEvents SDKs write ce_traceparent."""
    assert traceparent_of([("traceparent", None)]) == ""
    assert traceparent_of([("traceparent", None), ("ce_traceparent", SAMPLED.encode())]) == SAMPLED
    assert traceparent_of({"traceparent": SAMPLED}) == SAMPLED


def test_links_keep_the_sampled_sources_of_a_merge(tmp_path):
    signals = recording(tmp_path, ratio=0.0)
    with signals.span("merged", links=[UNSAMPLED, SAMPLED, ""]):
        pass
    with signals.span("nothing sampled went in", links=[UNSAMPLED]):
        pass
    signals.shutdown()
    (span,) = read_spans(tmp_path)
    assert span["name"] == "merged"
    assert span["links"] == [{"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}]


@pytest.mark.parametrize("header", ["", "garbage", "00-00000000000000000000000000000000-b7ad6b7169203331-01", SAMPLED[:-3]])
def test_a_malformed_traceparent_starts_a_new_trace(tmp_path, header):
    signals = recording(tmp_path)
    with signals.span("work", parent=header):
        pass
    signals.shutdown()
    (span,) = read_spans(tmp_path)
    assert span["parent_id"] == ""


def test_an_exception_marks_the_span_as_failed_and_goes_on(tmp_path):
    signals = recording(tmp_path)
    with pytest.raises(ValueError, match="broken"), signals.span("work"):
        raise ValueError("broken")
    signals.shutdown()
    (span,) = read_spans(tmp_path)
    assert (span["status"], span["status_detail"]) == ("ERROR", "ValueError: broken")


@pytest.mark.parametrize("headers", [[("traceparent", SAMPLED.encode())], [("x", b""), ("traceparent", SAMPLED)], {"traceparent": SAMPLED}])
def test_a_traceparent_is_found_among_kafka_headers_and_grpc_metadata(headers):
    assert traceparent_of(headers) == SAMPLED


@pytest.mark.parametrize("headers", [None, [], [("ce_id", b"1")], {}])
def test_no_traceparent_is_an_empty_text(headers):
    assert traceparent_of(headers) == ""


def test_counters_and_histograms_are_written_as_lines(tmp_path):
    signals = recording(tmp_path)
    signals.meter.create_counter("events").add(3, {"outcome": "sent"})
    signals.meter.create_histogram("latency", unit="ms").record(12.0)
    signals.shutdown()
    rows = [json.loads(line) for path in tmp_path.glob("*.metrics.jsonl") for line in path.read_text().splitlines()]
    counter = next(row for row in rows if row["metric"] == "events")
    histogram = next(row for row in rows if row["metric"] == "latency")
    assert (counter["value"], counter["attributes"], counter["service"]) == (3, {"outcome": "sent"}, "probe")
    assert (histogram["count"], histogram["sum"], histogram["unit"]) == (1, 12.0, "ms")


def test_a_half_written_last_line_is_left_out(tmp_path):
    (tmp_path / "dead-1.jsonl").write_text('{"name":"whole","start_ns":1}\n{"name":"ha')
    assert [span["name"] for span in read_spans(tmp_path)] == ["whole"]


def test_a_folder_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="TUNEMESH_TELEMETRY_DIR"):
        recording(tmp_path / "file" / "below")


def test_a_kafka_client_that_repeats_itself_is_logged_once(caplog):
    damper = Damper()
    record = logging.LogRecord("aiokafka.conn", logging.ERROR, "", 1, "cannot connect to %s", ("x",), None)
    other = logging.LogRecord("services.router", logging.ERROR, "", 1, "cannot connect to %s", ("x",), None)
    assert [damper.filter(record), damper.filter(record), damper.filter(other), damper.filter(other)] == [True, False, True, True]


def test_a_lost_connection_to_kafka_is_one_line_and_another_fault_keeps_its_stack(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    monkeypatch.setattr(logging.Logger, "manager", logging.Manager(logging.root))
    configure_logging("probe", Redactor([]))
    for error in (ConnectionResetError("reset by peer"), KeyError("a fault of the library")):
        try:
            raise error
        except (OSError, KeyError):
            logging.getLogger("kafka.net.transport").exception(f"{type(error).__name__} of %s", "a broker")
    first, *others = shown.getvalue().splitlines()
    assert first.endswith("kafka.net.transport: ConnectionResetError of a broker: ConnectionResetError('reset by peer')")
    assert any(line.startswith("Traceback") for line in others)


def test_a_line_of_the_log_is_bounded_whatever_a_producer_sent(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    configure_logging("probe", Redactor(["hunter-2"]))
    logging.root.warning("key %r is refused: hunter-2", "k" * 1_000_000)
    try:
        raise ValueError("v" * 1_000_000)
    except ValueError:
        logging.root.exception("it failed")
    assert len(shown.getvalue()) < 40_000
    assert "is refused: ***" in shown.getvalue() and "it failed\nTraceback" in shown.getvalue()


def test_a_span_that_is_not_sampled_costs_microseconds():
    signals = telemetry.disabled()

    def spans() -> None:
        for _ in range(1_000):
            with signals.span("work"):
                pass

    # 4 µs measured on two busy cores; the SDK's own un-sampled span takes 19.
    assert quickest_s(spans)[0] / 1_000 < seconds(40e-6)
