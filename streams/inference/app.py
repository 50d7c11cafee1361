"""The asynchronous door's wiring: the Faust app with its agent, and the questions that are under way.

A request is acknowledged once its answer, or its dead letter, has been acknowledged by the broker, and everything before it too. So a
door that dies answers again what was under way: a sender goes by inference_id. Within one process a repeated inference_id is answered
once; a repeat that comes while its question is under way shares its outcome, a dead letter too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Any

from opentelemetry.trace import SpanKind

from services.common.events import dead_letter_reasons as reasons
from services.common.events import envelope
from services.common.events.dead_letters import dead_letter_headers
from services.common.events.envelope import MalformedRecord
from services.common.events.topics import INFERENCE_REQUESTS, INFERENCE_RESPONSES
from services.common.events.undeliverable import Undeliverable
from services.common.platform.clock import wall_ms
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_record import Record
from services.common.platform.telemetry import Telemetry
from services.common.platform.traceparent import current_traceparent, traceparent_of
from streams import worker
from streams.inference import codec
from streams.inference.core import Answer, Failure, InOrder, Patience, Question, RecentIds, settle
from streams.inference.grpc_router import GrpcRouter
from streams.inference.settings import InferenceSettings
from streams.logs import LogReader
from streams.strikes import strikes_of

APP_ID = "tunemesh-inference"
SOURCE = "/tunemesh/inference"
# A question may be as large as a message, and those that are read ahead are in memory.
_BUFFER_RECORDS = 64

_log = logging.getLogger(__name__)


class InferenceDoor:
    """The whole process: `run` it, and `stop` it afterwards. Make it on the event loop that runs it."""

    def __init__(self, settings: InferenceSettings, telemetry: Telemetry) -> None:
        """Connects nothing. Records the counter `inference.requests` by outcome (answered, duplicate, or a dead letter's reason)."""
        self._settings = settings
        self._telemetry = telemetry
        self._router = GrpcRouter(settings.router_target, max_message_bytes=settings.max_message_bytes)
        self._undeliverable = Undeliverable(telemetry)
        self._producer = AsyncProducer(
            settings.kafka_bootstrap_servers,
            client_id=APP_ID,
            delivery_timeout_ms=settings.delivery_timeout_ms,
            compression=settings.kafka_compression,
        )
        self._reader = LogReader(settings.kafka_bootstrap_servers, APP_ID)
        self._app = worker.new_app(
            APP_ID,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            worker_id=settings.worker_id,
            session_timeout_ms=settings.session_timeout_ms,
            compression=settings.kafka_compression,
            buffer_records=_BUFFER_RECORDS,
        )
        self._patience = Patience(
            max_attempts=settings.max_attempts,
            attempt_timeout_s=settings.attempt_timeout_ms / 1e3,
            first_pause_s=settings.first_pause_ms / 1e3,
            max_pause_s=settings.max_pause_ms / 1e3,
        )
        self._recent = RecentIds(ttl_ms=settings.remembered_ms, max_ids=settings.remembered_ids)
        self._strikes = strikes_of(settings.strikes_dir, APP_ID, settings.worker_id, settings.kafka_bootstrap_servers)
        self._room = asyncio.Semaphore(settings.max_running)
        self._in_order: defaultdict[int, InOrder[Any]] = defaultdict(InOrder)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_revoked = False
        self._server: GrpcServer | None = None
        self._counter = telemetry.meter.create_counter("inference.requests", description="Questions that may wait, by outcome.")
        self._add_agent()

    def _add_agent(self) -> None:
        async def requests(stream: Any) -> None:
            async for event in stream.noack().events():
                await self._take(event.message)

        self._app.agent(worker.raw_topic(self._app, INFERENCE_REQUESTS.name), name="inference.requests")(worker.fatal(self._app, requests))
        self._app.on_partitions_revoked.connect(self._on_revoked)
        self._app.on_partitions_assigned.connect(self._on_assigned)

    async def run(self, server: GrpcServer) -> None:
        """Answer until cancelled.

        Raises:
            Unavailable: the broker or a topic is not there, even after a while.
            StreamFailed: something broke; the next process takes up from the committed offsets.
        """
        self._server = server
        await worker.when_available("Kafka", self._connect)
        await worker.run_until_failure(self._app)

    async def _connect(self) -> None:
        await self._reader.start()
        await self._reader.check_partitions(
            [topic for each in (INFERENCE_REQUESTS, INFERENCE_RESPONSES) for topic in (each.name, each.dlq)]
        )
        if not self._producer.connected:
            await self._producer.start(wait_s=1.0)

    async def stop(self) -> None:
        """Leave the group and close the connections. What is under way is answered by the next process."""
        await self._on_revoked(self._app, ())
        await self._app.stop()
        await self._producer.stop()
        await self._reader.stop()
        await self._router.close()
        self._strikes.close()

    async def _on_revoked(self, _app: Any, _revoked: Any, **_: Any) -> None:
        """Every rebalance takes all partitions away (eager protocol); whoever has one next answers what is not acknowledged."""
        self._is_revoked = True  # ending the tasks makes room, and what waits for it must not begin
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._in_order.clear()

    async def _on_assigned(self, _app: Any, assigned: Any, **_: Any) -> None:
        partitions = sorted(at.partition for at in assigned if at.topic == INFERENCE_REQUESTS.name)
        self._is_revoked = False
        _log.info("partitions %s taken up", partitions)
        if self._server is not None:
            await self._server.set_serving(True)

    async def _take(self, message: Any) -> None:
        """Begin with a message as soon as there is room."""
        await self._room.acquire()
        if self._is_revoked or message.generation_id != self._app.consumer_generation_id:  # from before a rebalance
            self._room.release()
            return
        in_order = self._in_order[message.partition]
        task = asyncio.create_task(
            self._work(message, in_order, in_order.start(message)), name=f"request {message.partition}/{message.offset}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._room.release())
        task.add_done_callback(worker.crash_on_failure(self._app))

    async def _work(self, message: Any, in_order: InOrder[Any], number: int) -> None:
        condemned = self._strikes.condemned(message)
        if condemned:
            await self._set_aside(message, Failure(reason=reasons.KILLED_WORKER, detail=condemned))
        else:
            with self._strikes.on_trial([message]):
                await self._work_on(message)
        for done in in_order.done(number):
            done.ack(self._app.consumer)

    async def _work_on(self, message: Any) -> None:
        with self._strikes.working_on(message):
            question = _question_in(message)
        if isinstance(question, Failure):
            await self._set_aside(message, question)
        else:
            await self._answer(message, question)

    async def _answer(self, message: Any, question: Question) -> None:
        if not self._recent.begin(question.inference_id, wall_ms()):
            self._counter.add(1, {"outcome": "duplicate"})
            return
        answered = False
        try:
            parent = traceparent_of(tuple(message.headers or ()))
            with self._telemetry.span("inference.answer", parent=parent, kind=SpanKind.CONSUMER):
                outcome = await settle(question, self._router, self._patience, now_ms=wall_ms, sleep=asyncio.sleep)
                if isinstance(outcome, Failure):
                    await self._set_aside(message, outcome)
                else:
                    await self._respond(message, question, outcome)
                    answered = True
        finally:
            self._recent.end(question.inference_id, wall_ms(), answered=answered)

    async def _respond(self, message: Any, question: Question, answer: Answer) -> None:
        headers = envelope.headers_for(INFERENCE_RESPONSES.value, SOURCE, event_id=question.inference_id, traceparent=current_traceparent())
        value = codec.write_answer(question, answer, wall_ms())
        record = Record(INFERENCE_RESPONSES.name, message.key or b"", value, headers)
        await self._undeliverable.send_until_acknowledged(self._producer, [record])
        self._counter.add(1, {"outcome": "answered"})

    async def _set_aside(self, message: Any, failure: Failure) -> None:
        letter = codec.write_dead_letter(message, failure, wall_ms())
        _log.warning("request %s/%d is set aside: %s: %s", message.partition, message.offset, failure.reason, failure.detail)
        record = Record(INFERENCE_REQUESTS.dlq, message.key or b"", letter.SerializeToString(), dead_letter_headers(letter, SOURCE))
        await self._undeliverable.send_until_acknowledged(self._producer, [record])
        self._counter.add(1, {"outcome": failure.reason})


def _question_in(message: Any) -> Question | Failure:
    try:
        return codec.read_question(message)
    except MalformedRecord as error:
        return Failure(reason=reasons.MALFORMED, detail=str(error))
