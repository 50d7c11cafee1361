"""Locust's side: users that start calls when they are due, users that keep streams open, and the shape that ends the run.

A schedule has one Locust user, which starts each call in a greenlet of its own and never waits for an answer. Importing Locust patches
the standard library for gevent, so only `python -m loadtests.load` imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from gevent.pool import Pool
from locust import LoadTestShape, User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.load.arrivals import Arrivals
from loadtests.load.calls import NOT_SENT, Call, CallLog
from loadtests.load.clients import SteadyClock

_STREAM_PAUSE_S = 0.5
_NAMES = {"recommend": "Recommend", "generate": "Generate", "feedback_kafka": "feedback.v1", "feedback_grpc": "SubmitFeedback"}

Perform = Callable[[Call], None]


class LoadEnvironment(Environment):
    """Locust's environment, and what the users of one run share."""

    def __init__(
        self,
        *,
        clock: SteadyClock,
        log: CallLog,
        performs: Mapping[str, Perform],
        arrivals: Mapping[str, Arrivals],
        streams_s: float,
        max_outstanding: int,
        patience_s: float,
        user_classes: list[type[User]],
    ) -> None:
        """Take all parts of a run.

        Args:
            clock: every time in the log is from it.
            log: gets each call when it has ended.
            performs: by kind, what makes one call.
            arrivals: by kind, when calls are due.
            streams_s: for how long streams are kept open.
            max_outstanding: calls of one kind that may be under way; one that is due beyond it is not sent, and has failed.
            patience_s: how long the last calls may take after the last one was due.
            user_classes: who runs: a schedule's user each, and one per stream.
        """
        super().__init__(user_classes=user_classes, shape_class=UntilDone(), stop_timeout=patience_s)
        self.clock, self.log, self.performs, self.arrivals = clock, log, performs, arrivals
        self.streams_s, self.max_outstanding, self.patience_s = streams_s, max_outstanding, patience_s
        self.stopping = Event()
        self.failure: BaseException | None = None
        self.num_users = sum(user.fixed_count for user in user_classes)
        self.num_done = 0
        self._begin_s: float | None = None

    def begin_s(self) -> float:
        """Return when the run began: when its first user asked."""
        if self._begin_s is None:
            self._begin_s = self.clock.now_s()
        return self._begin_s

    def perform(self, kind: str, planned_s: float) -> Call:
        """Make one call, log it and tell Locust."""
        call = Call(kind=kind, planned_s=planned_s, started_s=self.clock.now_s())
        self.performs[kind](call)
        call.ended_s = self.clock.now_s()
        self.note(call)
        return call

    def note(self, call: Call) -> None:
        """Log a call that has ended and tell Locust, whose response times count from when a call was due."""
        self.log.add(call)
        if not call.counts:
            return
        error = None if call.ok else RuntimeError(f"{call.status}: {call.detail}")
        fire = self.events.request.fire
        via = "Kafka" if call.kind == "feedback_kafka" else "gRPC"
        fire(request_type=via, name=_NAMES[call.kind], response_time=call.latency_ms, response_length=0, exception=error, context={})
        if call.first_text_s is not None:
            first_ms = (call.first_text_s - call.planned_s) * 1e3
            fire(request_type=via, name="Generate: first text", response_time=first_ms, response_length=0, exception=None, context={})

    def broke(self, greenlet: gevent.Greenlet) -> None:
        """Keep what is no refusal of the mesh but an error of ours, and end the run."""
        self.failure = self.failure or greenlet.exception
        self.stopping.set()


class MeshUser(User):  # type: ignore[misc, unused-ignore]
    """A user of one kind of call."""

    abstract = True
    fixed_count = 1
    environment: LoadEnvironment
    kind: ClassVar[str]


class OpenLoopUser(MeshUser):
    """Starts calls when they are due, whatever became of the earlier ones; a late start is logged, never made up for."""

    abstract = True

    @task
    def follow_schedule(self) -> None:
        """Run the whole schedule and wait for the last answers."""
        world = self.environment
        pool = Pool(world.max_outstanding)
        begin_s = world.begin_s()
        for offset_s in world.arrivals[self.kind].offsets():
            planned_s = begin_s + offset_s
            if world.stopping.wait(timeout=max(planned_s - world.clock.now_s(), 0.0)):
                break
            if pool.full():
                now_s = world.clock.now_s()
                detail = f"{world.max_outstanding} calls were under way already"
                world.note(Call(kind=self.kind, planned_s=planned_s, started_s=now_s, ended_s=now_s, status=NOT_SENT, detail=detail))
            else:
                pool.spawn(world.perform, self.kind, planned_s).link_exception(world.broke)
        pool.join(timeout=world.patience_s)
        world.num_done += 1
        raise StopUser


class RecommendUser(OpenLoopUser):
    """Recommend on a schedule."""

    kind = "recommend"


class GenerateUser(OpenLoopUser):
    """Generate on a schedule: streams begin when they are due, however many are open."""

    kind = "generate"


class KafkaProducerUser(OpenLoopUser):
    """Feedback straight to Kafka on a schedule."""

    kind = "feedback_kafka"


class CollectorUser(OpenLoopUser):
    """Feedback through the collector on a schedule."""

    kind = "feedback_grpc"


class StreamUser(MeshUser):
    """Keeps one stream open: asks the next question when an answer has ended (a closed loop, for "N streams at once")."""

    kind = "generate"

    @task
    def ask_again_and_again(self) -> None:
        """Ask until the time is up."""
        world = self.environment
        end_s = world.begin_s() + world.streams_s
        try:
            while world.clock.now_s() < end_s and not world.stopping.is_set():
                call = world.perform(self.kind, world.clock.now_s())
                if not call.ok:
                    world.stopping.wait(timeout=_STREAM_PAUSE_S)
        except Exception as error:
            world.failure = world.failure or error
            world.stopping.set()
            raise
        finally:
            world.num_done += 1
        raise StopUser


class UntilDone(LoadTestShape):
    """All users from the first tick on, until each has said that it is done: the schedules make the shape."""

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users and how many start per second; None ends the run."""
        assert self.runner is not None
        world: Any = self.runner.environment
        return None if world.num_done >= world.num_users else (world.num_users, float(world.num_users))
