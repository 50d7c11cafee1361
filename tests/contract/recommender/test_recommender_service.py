"""RecommenderService over a real gRPC server with fake collaborators, and the process itself with nothing to talk to."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.recommender.v1 import recommender_service_pb2 as pb
from tunemesh.recommender.v1 import recommender_service_pb2_grpc as pb_grpc

from services.common.platform import telemetry
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.telemetry_files import read_spans
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.runner.embedded import free_ports
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.recommender.server import grpc_servicer
from services.recommender.servicer import RecommenderServicer
from services.recommender.settings import RecommenderSettings
from tests.limits import seconds
from tests.recommender_fakes import SPEC, Fixture

MAX_CANDIDATES = 5


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


@pytest.fixture
async def stub(fixture) -> AsyncIterator[pb_grpc.RecommenderServiceStub]:
    silent = telemetry.disabled("recommender")
    implementation = RecommenderServicer(fixture.core(), SPEC, silent, max_candidates=MAX_CANDIDATES)
    server = GrpcServer(RecommenderSettings(port=0), silent, [grpc_servicer(implementation)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.RecommenderServiceStub(channel)
    await server.drain()


async def status_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_a_whole_answer_fills_every_field(stub):
    response = await stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["5", "900", "30"], limit=2))
    assert [item.item_id for item in response.items] == ["900", "30"]
    assert response.items[0].score > response.items[1].score
    assert list(response.items[0].reasons) == ["candidate", "cold_start"]
    assert list(response.items[0].task_scores) == pytest.approx([0.9, 0.9])
    assert list(response.task_names) == ["interact", "like"]
    assert (response.model_version, response.seq_min, response.seq_max) == ("3.42", 41, 42)
    assert response.degraded_reason == ""
    assert response.schema_hash == SPEC.schema_hash
    assert len(exposure_block.decode(response.features_block, SPEC)) == 2


async def test_the_profile_is_the_requests_or_else_the_stored_one(stub, fixture):
    fixture.features.profiles["7"] = {"age": 31}
    await stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["5"], limit=1, context={"page": {"text": "home"}}))
    await stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["5"], limit=1, profile={"city": {"text": "Oslo"}}))
    assert fixture.features.profiles_read == [{"age": 31}, {"city": "Oslo"}]


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        ({"context": {"page": {}}}, "context.page: it has no value; leave it out where there is none"),
        ({"context": {"hour": {"number": float("inf")}}}, "context.hour: inf is not finite"),
        ({"profile": {"": {"integer": 1}}}, "profile: the name '' is empty"),
        ({"profile": {"v": {"numbers": {"values": [0.0] * 5_000}}}}, "profile.v: it has 5000 elements; a list has at most 4096"),
    ],
)
async def test_attributes_that_break_the_contract_are_refused_by_name(stub, brought, said):
    code, details = await status_of(stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["5"], limit=1, **brought)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and details.startswith(said)


async def test_an_attribute_of_another_type_than_the_spec_reads_is_refused_by_name(fixture):
    hour = {"raw_feature": {"feature_name": "hour", "expression": "context:hour"}}
    fixture.spec = fixture.ranker.spec = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": [hour]})
    fixture.catalog.plan = fixture.spec.plan
    servicer = RecommenderServicer(fixture.core(), fixture.spec, telemetry.disabled("recommender"), max_candidates=MAX_CANDIDATES)
    server = GrpcServer(RecommenderSettings(port=0), telemetry.disabled("recommender"), [grpc_servicer(servicer)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        request = pb.RecommendRequest(user_id="7", candidates=["5"], limit=1, context={"hour": {"text": "nine"}})
        code, details = await status_of(stub.Recommend(request))
        assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "context.hour: 'nine' is no number")
        request.context["hour"].integer = 9
        answer = await stub.Recommend(request)
        features = exposure_block.decode(answer.features_block, fixture.spec)
        assert features.user_U[fixture.spec.user_columns.index("hour")] == 9
    await server.drain()


async def test_without_the_ranker_the_answer_says_so_and_names_no_version(stub, fixture):
    fixture.ranker.is_down = True
    response = await stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["5", "900"], limit=9))
    assert response.degraded_reason == "ranker_unavailable"
    assert response.model_version == "" and not response.items[0].task_scores
    assert response.features_block


async def test_without_features_and_ranker_both_are_named_and_nothing_is_logged(stub, fixture):
    fixture.ranker.is_down = fixture.features.is_down = True
    response = await stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["5", "900"], limit=9))
    assert response.degraded_reason == "features_unavailable,ranker_unavailable"
    assert response.features_block == b""
    assert [item.item_id for item in response.items] == ["5", "900"]


async def test_an_unknown_user_and_unknown_items_are_answered(stub):
    response = await stub.Recommend(pb.RecommendRequest(user_id="nobody ❤", candidates=["no such item"], limit=1))
    assert [item.item_id for item in response.items] == ["no such item"] and response.degraded_reason == ""


async def test_an_open_request_with_nothing_to_recall_is_an_empty_answer(stub):
    response = await stub.Recommend(pb.RecommendRequest(user_id="7", limit=3))
    assert not response.items and response.degraded_reason == ""


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.RecommendRequest(candidates=["1"], limit=1), "user_id: it is empty; it must have 1 to 128 bytes"),
        (pb.RecommendRequest(user_id="x" * 129, candidates=["1"], limit=1), "user_id: it has 129 bytes; it must have 1 to 128"),
        (pb.RecommendRequest(user_id="7", candidates=["1", "1"], limit=1), "candidates: an item is named twice"),
        (pb.RecommendRequest(user_id="7", candidates=["1", ""], limit=1), "candidates[1]: it is empty; it must have 1 to 128 bytes"),
        (pb.RecommendRequest(user_id="7", candidates=list("123456"), limit=1), "candidates: 6 given, at most 5 are allowed"),
        (pb.RecommendRequest(user_id="7", candidates=["1"]), "limit: must be at least 1"),
    ],
)
async def test_a_request_that_breaks_the_contract_is_an_invalid_argument(stub, request_, message):
    assert await status_of(stub.Recommend(request_)) == (grpc.StatusCode.INVALID_ARGUMENT, message)


async def test_the_callers_deadline_reaches_the_ranker(stub, fixture):
    loop = asyncio.get_running_loop()
    before = loop.time()
    await stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["1"], limit=1), timeout=3.0)
    # gRPC rounds deadlines, so the sharp bound of 3 s would be missed by milliseconds now and then.
    assert before + 2.0 < fixture.ranker.deadlines[0] < before + 4.0


async def test_an_unexpected_error_is_internal_and_leaks_nothing(stub, fixture):
    def explode(key: int) -> float:
        raise ZeroDivisionError("secret")

    fixture.ranker.score_of = explode
    code, details = await status_of(stub.Recommend(pb.RecommendRequest(user_id="7", candidates=["1"], limit=1)))
    assert code == grpc.StatusCode.INTERNAL and "secret" not in details


def many(*requests: pb.RecommendRequest, timeout_ms: int = 60_000, spans: tuple[str, ...] = ()) -> pb.RecommendManyRequest:
    parts = [pb.MergedRequest(request=request, timeout_ms=timeout_ms) for request in requests]
    for part, span in zip(parts, spans, strict=False):
        part.traceparent = span
    return pb.RecommendManyRequest(requests=parts)


async def test_many_requests_are_answered_each_as_if_it_had_come_alone(stub):
    requests = [pb.RecommendRequest(user_id=str(number), candidates=["5", "900", "30"], limit=number) for number in (1, 2, 3)]
    response = await stub.RecommendMany(many(*requests))
    alone = [await stub.Recommend(request) for request in requests]
    assert [pb.RecommendResponse.FromString(answer.response) for answer in response.answers] == alone
    assert [(answer.code, answer.message) for answer in response.answers] == [(0, "")] * 3


async def test_among_many_one_that_fails_fails_alone(stub, fixture):
    def explode_for_666(key: int) -> float:
        if key == 666:
            raise ZeroDivisionError("secret")
        return 0.5

    fixture.ranker.score_of = explode_for_666
    requests = [
        pb.RecommendRequest(user_id="7", candidates=["1"], limit=1),
        pb.RecommendRequest(user_id="7", candidates=["1", "1"], limit=1),
        pb.RecommendRequest(user_id="7", candidates=["666"], limit=1),
        pb.RecommendRequest(user_id="8", candidates=["2"], limit=1),
    ]
    answers = (await stub.RecommendMany(many(*requests))).answers
    assert [answer.code for answer in answers] == [0, grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.INTERNAL.value[0], 0]
    assert answers[1].message == "candidates: an item is named twice"
    assert "secret" not in answers[2].message and "its log has the traceback" in answers[2].message
    assert [pb.RecommendResponse.FromString(answers[at].response).items[0].item_id for at in (0, 3)] == ["1", "2"]


@pytest.mark.parametrize("number", [0, 65, 640])
async def test_no_or_too_many_requests_are_an_invalid_argument(stub, number):
    one = pb.RecommendRequest(user_id="7", candidates=["1"], limit=1)
    said = f"requests: {number} given, 1 to 64 are allowed"
    assert await status_of(stub.RecommendMany(many(*[one] * number))) == (grpc.StatusCode.INVALID_ARGUMENT, said)


async def test_each_of_many_has_the_deadline_of_its_caller(stub, fixture):
    before = asyncio.get_running_loop().time()
    one = pb.RecommendRequest(user_id="7", candidates=["1"], limit=1)
    await stub.RecommendMany(pb.RecommendManyRequest(requests=[{"request": one, "timeout_ms": 3_000}, {"request": one}]), timeout=900)
    short, default = sorted(fixture.ranker.deadlines)
    assert before + 2.0 < short < default and default - short == pytest.approx(2.0, abs=1.0)


async def test_each_of_many_has_a_span_in_its_callers_trace_and_a_duration_and_the_call_has_none(fixture, tmp_path):
    settings = RecommenderSettings(port=0, TUNEMESH_TELEMETRY_DIR=str(tmp_path), TUNEMESH_TELEMETRY_SAMPLE_RATIO=1.0)
    telling = telemetry.configure("recommender", settings)
    server = GrpcServer(settings, telling, [grpc_servicer(RecommenderServicer(fixture.core(), SPEC, telling, max_candidates=5))])
    port = await server.start()
    requests = [pb.RecommendRequest(user_id="7", candidates=["1"], limit=limit) for limit in (1, 0, 1)]
    callers = (f"00-{'1' * 32}-{'2' * 16}-01", f"00-{'3' * 32}-{'4' * 16}-01", f"00-{'5' * 32}-{'6' * 16}-00")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await pb_grpc.RecommenderServiceStub(channel).RecommendMany(many(*requests, spans=callers))
    await server.drain()
    telling.shutdown()
    spans = [(span["name"], span["kind"], span["trace_id"], span["parent_id"], span["status"]) for span in read_spans(tmp_path)]
    assert sorted(spans) == [
        ("recommender.Recommend", "SERVER", "1" * 32, "2" * 16, "UNSET"),
        ("recommender.Recommend", "SERVER", "3" * 32, "4" * 16, "ERROR"),
    ]
    rows = [json.loads(line) for path in tmp_path.glob("*.metrics.jsonl") for line in path.read_text().splitlines()]
    last = {row["attributes"]["rpc.grpc.status_code"]: row for row in rows if row["metric"] == "rpc.server.duration"}
    assert {code: (row["attributes"]["rpc.method"], row["count"]) for code, row in last.items()} == {
        0: ("/tunemesh.recommender.v1.RecommenderService/Recommend", 2),
        3: ("/tunemesh.recommender.v1.RecommenderService/Recommend", 1),
    }


def start(**variables: str) -> subprocess.Popen[str]:
    env = {**os.environ, "TUNEMESH_TELEMETRY_DIR": variables.pop("telemetry_dir", "build/telemetry"), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "services.recommender"],
        env=env,
        cwd=REPOSITORY_ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TUNEMESH_RECOMMENDER_RULES_PATH", "no/such/rules.yaml", "rules no/such/rules.yaml: cannot be read"),
        ("TUNEMESH_FEATURE_SPEC", "no/such/spec.yaml", "feature spec no/such/spec.yaml: cannot be read"),
        ("TUNEMESH_RECOMMENDER_MAX_CANDIDATES", "many", "TUNEMESH_RECOMMENDER_MAX_CANDIDATES=many"),
        ("TUNEMESH_RECOMMENDER_MAX_CANDIDATE", "5", "did you mean TUNEMESH_RECOMMENDER_MAX_CANDIDATES?"),
        ("REDIS_URL", "carrier-pigeon://x", "REDIS_URL=***: not of the form redis://host:port"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(variable, value, said):
    process = start(**{variable: value})
    _, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("configuration error: ") and said in last
    assert "Traceback" not in errors


async def serving(health: health_pb2_grpc.HealthStub) -> None:
    """Wait until the service says that it serves; the test's own time limit ends a wait in vain."""
    request = health_pb2.HealthCheckRequest(service="tunemesh.recommender.v1.RecommenderService")
    while (await health.Check(request, timeout=seconds(30))).status != health_pb2.HealthCheckResponse.SERVING:
        await asyncio.sleep(0.05)


async def test_the_process_answers_degraded_when_nothing_else_runs_and_ends_on_sigterm(tmp_path):
    port, closed = free_ports(2)
    process = start(
        telemetry_dir=str(tmp_path),
        TUNEMESH_RECOMMENDER_PORT=str(port),
        TUNEMESH_RECOMMENDER_CATALOG_WAIT_MS="100",
        TUNEMESH_TABLES_DIR=str(tmp_path / "tables"),
        KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{closed}",
        REDIS_URL=f"redis://127.0.0.1:{closed}/0",
        TRITON_URL=f"127.0.0.1:{closed}",
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = pb.RecommendRequest(user_id="7", candidates=["5", "900"], limit=9)
            response = await pb_grpc.RecommenderServiceStub(channel).Recommend(request, timeout=seconds(90), wait_for_ready=True)
            await serving(health_pb2_grpc.HealthStub(channel))
        assert response.degraded_reason == "catalog_unavailable,features_unavailable,ranker_unavailable"
        assert [item.item_id for item in response.items] == ["5", "900"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
