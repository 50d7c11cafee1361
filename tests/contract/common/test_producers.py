"""Every producer of the tree: what Kafka refuses of it for good becomes a dead letter in one room, or the reason why not stands here."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from services.mesh.runner.environments import REPOSITORY_ROOT

FOLDERS = ("services", "streams", "tunemesh_client", "loadtests", "model_repo")
CLIENTS = {"KafkaProducer", "AIOKafkaProducer"}
PRODUCERS = CLIENTS | {
    "AsyncProducer", "RenewedProducer", "durable_producer", "send_each", "make_producer", "dead_letter_writer", "KafkaLetterBox", "new_app",
    "EventProducer", "AsyncEventProducer",
}  # fmt: skip

THE_CLIENTS = "the client itself: its callers stand here"
THE_CALLERS = "its caller is told, and keeps the record"
LETTER_WRITER = "services/common/events/dead_letter_writer.py"

ROOM = "services.common.events.undeliverable"
WAYS_IN = {"in_place_of", "shorter", "send_once", "send_until_acknowledged", "send_from_thread"}

# Who makes a producer -> who hands what it refuses to the room.
THROUGH_THE_ROOM = {
    "services/router/server.py": ("services/router/event_log.py", LETTER_WRITER),
    "services/recommender/server.py": (LETTER_WRITER,),
    "services/tuner/server.py": (LETTER_WRITER,),
    LETTER_WRITER: (LETTER_WRITER,),
    "streams/curator/app.py": ("streams/partitioned/output.py",),
    "streams/features/app.py": ("streams/features/app.py",),
    "streams/inference/app.py": ("streams/inference/app.py",),
    "streams/joiner/app.py": ("streams/partitioned/output.py",),
    "streams/quality/app.py": (LETTER_WRITER,),
    "streams/quality/quality_log.py": ("streams/quality/quality_log.py",),
}
# Who makes a producer -> why what it refuses is no business of the room.
ELSEWHERE = {
    "services/common/platform/kafka_async.py": THE_CLIENTS,
    "services/common/platform/kafka_producer.py": THE_CLIENTS,
    "services/feedback_collector/server.py": "feedback that is refused is INVALID_ARGUMENT to its sender, who has it still",
    "services/mesh/operate/redrive.py": "the record is a dead letter already, and stays one; the operator is told",
    "services/recommender/updater/kafka_feed.py": "a second later the next report of the replica takes the place of one",
    "services/trainer/catalogue.py": "a command: who gave it is told which record was refused, and has the file still",
    "services/trainer/kafka_calls.py": THE_CLIENTS,
    "services/trainer/server.py": "control.v1, deltas and bases: a letter in place of one would be a gap in what replicas follow, so it is "
    "sent until the topic takes it, and the log names the cause; of its dead letters kafka_samples.py makes shorter ones",
    "streams/partitioned/app.py": "Faust's own producer: no stream writes with it",
    "tunemesh_client/event_producer.py": THE_CALLERS,
    "loadtests/bench_freshness/round.py": "a bench's events, smaller than any topic's limit; what is lost is missing in its counts",
    "loadtests/demo/catalogue.py": THE_CALLERS,
    "loadtests/demo/client.py": THE_CALLERS,
    "loadtests/load/clients.py": THE_CALLERS,
}
# They have no part in the table of who makes one, and write what the room gave them.
ALSO_IN = {"services/trainer/kafka_samples.py"}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.Module) -> Iterator[tuple[str, list[ast.expr]]]:
    """Last name of what is called, or handed to a call as what it is to make, and the arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for each in (node.func, *node.args):
                yield getattr(each, "attr", getattr(each, "id", "")), node.args


def files() -> dict[str, Path]:
    paths = [path for folder in FOLDERS for path in (REPOSITORY_ROOT / folder).rglob("*.py")]
    return {path.relative_to(REPOSITORY_ROOT).as_posix(): path for path in paths}


def makers() -> dict[str, set[str]]:
    """Which producers a file makes."""
    found = {name: {called for called, _ in calls(tree_of(path))} & PRODUCERS for name, path in files().items()}
    return {name: made for name, made in found.items() if made}


def enters(name: str) -> bool:
    """Whether a file imports from the room, and calls one of the ways in."""
    tree = tree_of(files()[name])
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return ROOM in imports and bool({called for called, _ in calls(tree)} & WAYS_IN)


def test_every_producer_is_listed_once_and_nothing_else_is() -> None:
    made = makers()
    assert sum(map(len, made.values())) >= 20
    assert not THROUGH_THE_ROOM.keys() & ELSEWHERE.keys()
    assert made.keys() == THROUGH_THE_ROOM.keys() | ELSEWHERE.keys()


def test_what_is_said_to_go_through_the_room_does() -> None:
    writers = {writer for of_one in THROUGH_THE_ROOM.values() for writer in of_one}
    assert {name for name in writers | ALSO_IN if not enters(name)} == set()
    for maker, of_one in THROUGH_THE_ROOM.items():
        has_letters, has_records = LETTER_WRITER in of_one, set(of_one) != {LETTER_WRITER}
        mine = makers()[maker]
        assert ("dead_letter_writer" in mine or maker == LETTER_WRITER) is has_letters, maker
        assert bool(mine & {"AsyncProducer", "RenewedProducer", "send_each"} and maker != LETTER_WRITER) is has_records, maker


def test_a_client_is_made_in_the_platform_and_in_the_client_package_only() -> None:
    assert {name for name, made in makers().items() if made & CLIENTS} == {
        "services/common/platform/kafka_async.py", "services/common/platform/kafka_producer.py", "tunemesh_client/event_producer.py",
    }  # fmt: skip


def test_refusals_are_told_from_what_passes_by_the_clients_and_the_room_alone() -> None:
    """Who would catch them elsewhere would decide elsewhere."""
    named = {
        name for name, path in files().items() for node in ast.walk(tree_of(path)) if getattr(node, "id", "") in ("REFUSALS", "_REFUSALS")
    }
    assert named == {
        "services/common/platform/kafka_async.py",
        "services/common/platform/kafka_producer.py",
        "services/common/events/undeliverable.py",
        LETTER_WRITER,
        "services/trainer/kafka_samples.py",
        "services/mesh/operate/redrive.py",
    }
