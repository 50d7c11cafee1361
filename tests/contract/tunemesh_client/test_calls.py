"""Every way of calling (blocking, through futures, asyncio) against a real gRPC server that refuses and hangs as it is told."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.client_fakes import UNAVAILABLE, WAYS, Hang, Refusal, ScriptedMesh, start_mesh
from tests.limits import seconds
from tests.slow_network import slow_to_connect
from tunemesh_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Feedback,
    Internal,
    InvalidRequest,
    Overloaded,
    RetryPolicy,
    Transport,
    TunemeshError,
    Unavailable,
)

QUICK = RetryPolicy(retries=5, first_pause_s=0.001, max_pause_s=0.002)
ROUNDED = 1.1  # a deadline travels as a number that gRPC rounds up
RETRIED = {UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def rating(**fields: Any) -> Feedback:
    return Feedback(**{"request_id": "r1", "user_id": "u", "kind": "rating", "item_id": "a", "value": 5.0, **fields})


async def pieces_of(stream: Any) -> list[str]:
    return [piece async for piece in stream]


# Recommend, and what holds for every unary call.


async def test_an_answer_becomes_a_recommendation(mesh, make):
    found = await make().recommend("u", ["a", "b", "c"], 2)
    assert [(item.item_id, item.score, item.task_scores, item.reasons) for item in found.items] == [
        ("a", 1.0, (0.25, 0.75), ("candidate",)),
        ("b", 0.5, (0.25, 0.75), ("candidate",)),
    ]
    assert (found.request_id, found.model_version, found.variant, found.task_names) == ("r1", "1.7", "default", ("interact", "like"))
    assert (found.degraded_reason, found.experiment, found.attempts) == ("", "", 1) and found.latency_s > 0
    [seen] = mesh.seen
    assert (seen.request.user_id, list(seen.request.candidates), seen.request.limit) == ("u", ["a", "b", "c"], 2)


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(mesh, make, monkeypatch):
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await make().recommend("u", ["a"])).request_id


async def test_context_and_profile_go_along_in_their_kinds(mesh, make):
    context = {"page": "home", "hour": 21, "price": 7.5, "is_app": True}
    await make().recommend("u", ["a"], context=context, profile={"tags": ["x"], "v": [1, 2.5]})
    [seen] = mesh.seen
    assert {name: value.WhichOneof("kind") for name, value in seen.request.context.items()} == {
        "page": "text",
        "hour": "integer",
        "price": "number",
        "is_app": "boolean",
    }
    assert list(seen.request.profile["tags"].texts.values) == ["x"] and list(seen.request.profile["v"].numbers.values) == [1.0, 2.5]
    with pytest.raises(InvalidRequest, match=r"context\.hour: nan is not finite"):
        await make().recommend("u", ["a"], context={"hour": float("nan")})


async def test_a_refused_call_is_repeated_with_its_key_until_it_is_answered(mesh, make):
    mesh.script = [Refusal(), Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")]
    told: list[tuple[TunemeshError, float]] = []
    found = await make(on_retry=lambda error, pause_s: told.append((error, pause_s))).recommend("u", ["a"])
    assert (found.request_id, found.attempts) == ("r3", 3)
    keys = {seen.request.idempotency_key for seen in mesh.seen}
    assert len(mesh.seen) == 3 and len(keys) == 1 and len(keys.pop()) == 36
    assert [(type(error), error.details, error.attempts) for error, _ in told] == [(Unavailable, "not now", 1), (Overloaded, "full", 2)]
    assert all(0.0005 <= pause_s <= 0.002 for _, pause_s in told)


async def test_a_connection_that_takes_long_to_be_made_is_waited_for(port, make):
    async with slow_to_connect(port, 1.5) as slow_port:
        client = make(address=f"127.0.0.1:{slow_port}", retry=RetryPolicy(retries=0), deadline_s=seconds(30))
        assert (await client.recommend("u", ["a"])).request_id == "r1"
        await client.close()


async def test_a_caller_can_continue_a_failed_call_with_its_key(mesh, make):
    client = make(retry=RetryPolicy(retries=0))
    mesh.script = [Refusal()]
    with pytest.raises(Unavailable) as caught:
        await client.recommend("u", ["a"])
    await client.recommend("u", ["a"], idempotency_key=caught.value.idempotency_key)
    await client.recommend("u", ["a"])
    keys = [seen.request.idempotency_key for seen in mesh.seen]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_only_what_a_retry_helps_is_repeated(mesh, make, code):
    mesh.script = [Refusal(code, "why")] * 3
    with pytest.raises(TunemeshError) as caught:
        await make(retry=RetryPolicy(retries=1, first_pause_s=0.001)).recommend("u")
    error = caught.value
    assert error.retry_helps is (code in RETRIED)
    assert (error.status, error.details) == (code.name, "why")
    assert error.attempts == len(mesh.seen) == (2 if code in RETRIED else 1)
    assert error.request.startswith("Recommend at 127.0.0.1:")


async def test_without_retries_the_first_failure_is_raised(mesh, make):
    mesh.script = [Refusal()]
    with pytest.raises(Unavailable, match=r"Recommend at 127\.0\.0\.1:\d+: UNAVAILABLE: not now$"):
        await make(retry=RetryPolicy(retries=0)).recommend("u")
    assert len(mesh.seen) == 1


async def test_the_server_says_how_long_to_wait(mesh, make):
    status = status_pb2.Status(code=8, message="full")
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=30_000_000)))
    mesh.script = [Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-status-details-bin", status.SerializeToString()),))]
    pauses: list[float] = []
    await make(on_retry=lambda _, pause_s: pauses.append(pause_s)).recommend("u", ["a"])
    assert pauses == [0.03]


async def test_every_call_has_a_deadline(mesh, make):
    client = make()
    await client.recommend("u")
    await client.recommend("u", deadline_s=seconds(300))
    await client.feedback(rating())
    await pieces_of(client.generate("u", "When?"))
    await pieces_of(client.generate("u", "When?", deadline_s=5.0))
    limits = (10.0, seconds(300), 10.0, 60.0, 5.0)
    assert all(0 < seen.remaining_s <= limit * ROUNDED for seen, limit in zip(mesh.seen, limits, strict=True))
    assert mesh.seen[1].remaining_s > 10.0


async def test_no_answer_within_the_deadline_is_deadline_exceeded(mesh, make):
    mesh.script = [Hang()] * 5
    with pytest.raises(DeadlineExceeded) as caught:
        await make().recommend("u", deadline_s=1.0)
    assert caught.value.retry_helps and caught.value.attempts == 1
    assert all(seen.remaining_s <= 1.0 * ROUNDED for seen in mesh.seen)


async def test_an_attempt_that_hangs_is_given_up_and_repeated_with_its_key(mesh, make):
    mesh.script = [Hang()]
    retry = RetryPolicy(first_pause_s=0.001, attempt_timeout_s=1.0)
    found = await make(retry=retry).recommend("u", ["a"], deadline_s=seconds(60))
    assert found.attempts >= 2 and len({seen.request.idempotency_key for seen in mesh.seen}) == 1
    assert all(seen.remaining_s <= 1.0 * ROUNDED for seen in mesh.seen)


async def test_repeats_end_with_the_deadline(mesh, make):
    mesh.script = [Refusal()] * 100_000
    with pytest.raises(TunemeshError) as caught:
        await make(retry=RetryPolicy(retries=None, first_pause_s=0.05, max_pause_s=0.05)).recommend("u", deadline_s=1.0)
    assert caught.value.retry_helps and caught.value.attempts < 100


async def test_a_server_that_comes_up_meanwhile_is_found(make):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        free = reserved.getsockname()[1]
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()
    client = make(
        address=f"127.0.0.1:{free}",
        retry=RetryPolicy(retries=None, first_pause_s=0.05, max_pause_s=0.2),
        on_retry=lambda *_: loop.call_soon_threadsafe(refused.set),
    )
    waiting = asyncio.ensure_future(client.recommend("u", ["a"], deadline_s=seconds(60)))
    await asyncio.wait_for(refused.wait(), seconds(60))
    server, _ = await start_mesh(ScriptedMesh(), port=free)
    assert (await waiting).attempts > 1
    await server.stop(None)


async def test_nothing_that_listens_is_unavailable(make):
    with pytest.raises(Unavailable) as caught:
        await make(address="127.0.0.1:1").recommend("u", deadline_s=seconds(10))
    assert caught.value.attempts == 6 and "127.0.0.1:1" in str(caught.value)


async def test_a_message_that_is_too_large_is_the_callers_mistake(mesh, make):
    client = make(transport=Transport(max_message_bytes=2_000))
    with pytest.raises(InvalidRequest, match="larger than max"):
        await client.recommend("u", [f"item-{number}" for number in range(1_000)])
    assert mesh.seen == []
    with pytest.raises(InvalidRequest, match="larger than max"):
        await client.recommend("u", [f"i{number}" for number in range(100)])
    assert len(mesh.seen) == 1


async def test_the_trace_context_goes_along(mesh, make):
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client = make(traceparent=lambda: traceparent)
    await client.recommend("u")
    await client.feedback(rating())
    await pieces_of(client.generate("u", "When?"))
    assert [seen.metadata["traceparent"] for seen in mesh.seen] == [traceparent] * 3
    await make().recommend("u")
    assert "traceparent" not in mesh.seen[-1].metadata


async def test_closing_ends_what_is_under_way(mesh, make):
    mesh.script = [Hang(), Hang()]
    client = make()
    call = asyncio.ensure_future(client.recommend("u", deadline_s=seconds(60)))
    stream = asyncio.ensure_future(pieces_of(client.generate("u", "When?", deadline_s=seconds(60))))
    while len(mesh.seen) < 2:
        await asyncio.sleep(0.01)
    await client.close()
    for waiting in (call, stream):
        with pytest.raises(Cancelled):
            await asyncio.wait_for(waiting, seconds(60))


@pytest.mark.parametrize("is_used", [False, True])
async def test_a_closed_client_says_so(mesh, make, is_used):
    client = make()
    if is_used:
        await client.recommend("u")
        await client.feedback(rating())
    await client.close()
    for call in (client.recommend("u"), client.feedback(rating()), pieces_of(client.generate("u", "When?"))):
        with pytest.raises(Cancelled, match="the client is closed"):
            await call
    assert len(mesh.seen) == 2 * is_used


async def test_a_task_that_is_cancelled_stays_cancelled(mesh, port):
    mesh.script = [Hang(), Hang()]
    async with AsyncClient(f"127.0.0.1:{port}", retry=QUICK) as client:
        for waiting in (asyncio.ensure_future(client.recommend("u")), asyncio.ensure_future(pieces_of(client.generate("u", "When?")))):
            before = mesh.cancelled
            async with asyncio.timeout(seconds(60)):
                while mesh.hanging == before:
                    await asyncio.sleep(0.01)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                while mesh.cancelled == before:
                    await asyncio.sleep(0.01)


# Feedback.


async def test_feedback_gets_a_receipt_and_keeps_its_id_when_it_is_repeated(mesh, make):
    mesh.script = [Refusal(), Refusal()]
    act = rating(original_time_ms=7)
    client = make()
    receipt = await client.feedback(act)
    assert (receipt.feedback_id, receipt.accepted_at_ms, receipt.duplicate) == (act.feedback_id, 5, True)
    sent = [seen.request.feedback[0] for seen in mesh.seen]
    assert len(sent) == 3 and {each.feedback_id for each in sent} == {act.feedback_id}
    assert (sent[0].value, sent[0].kind, sent[0].original_time_ms, sent[0].accepted_at_ms) == (5.0, "rating", 7, 0)


async def test_several_acts_go_in_one_call(mesh, make):
    acts = [rating(item_id=str(number)) for number in range(3)]
    receipts = await make().feedback_many(acts)
    assert [receipt.feedback_id for receipt in receipts] == [act.feedback_id for act in acts]
    assert not any(receipt.duplicate for receipt in receipts) and len(mesh.seen) == 1


async def test_a_collector_that_loses_receipts_is_not_believed(mesh, make):
    mesh.receipts_short = 1
    with pytest.raises(Internal, match="0 receipts came for 1 feedback"):
        await make().feedback(rating())


async def test_feedback_needs_the_address_of_a_collector(port):
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(InvalidRequest, match="without the address of a feedback collector"):
        client.feedback(rating())
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(InvalidRequest, match="without the address of a feedback collector"):
            await client.feedback(rating())


# TLS.


def self_signed() -> tuple[bytes, bytes]:
    """Return (private key, certificate) for 127.0.0.1, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "router")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(encoding)


@pytest.mark.parametrize("way", sorted(WAYS))
async def test_tls_is_used_when_credentials_are_given(mesh, way):
    private, certificate = self_signed()
    server, port = await start_mesh(mesh, credentials=grpc.ssl_server_credentials([(private, certificate)]))
    trusted = Transport(credentials=grpc.ssl_channel_credentials(certificate))
    client = WAYS[way](f"127.0.0.1:{port}", transport=trusted)
    assert (await client.recommend("u", ["a"])).items[0].item_id == "a"
    stranger = WAYS[way](f"127.0.0.1:{port}", retry=RetryPolicy(retries=0))
    with pytest.raises(Unavailable):
        await stranger.recommend("u", ["a"], deadline_s=seconds(10))
    for each in (client, stranger):
        await each.close()
    await server.stop(None)
