"""Records that are nearly right: what real writers send, damaged, and JSON of the right names with the wrong contents."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import json_format
from tunemesh.catalog.v1 import catalog_item_pb2
from tunemesh.events.v1 import exposure_pb2, generation_pb2, profile_pb2

from services.common.events.chat import Message, Passage, Sampling, Usage
from services.common.events.wire.attributes import write_attributes
from services.router.core import Exposure, Query, Recommendation
from services.router.generation import Generation, Header
from services.router.question import Question
from services.router.records import exposure_record, generation_record
from tests.edge_fakes import ranking_of
from tests.fuzzing import Damage

NOW_MS = 1_700_000_000_000

Triple = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]

_TYPES = (
    "application/json",
    "application/protobuf",
    "application/cloudevents+json",
    "application/octet-stream",
    "text/plain",
    "",
    "\ufffd",
)
_NAMES = (
    "item_id",
    "itemId",
    "title",
    "categories",
    "attributes",
    "updated_at_ms",
    "feedback_id",
    "request_id",
    "user_id",
    "kind",
    "value",
)
_NAMES += ("accepted_at_ms", "before", "after", "op", "source", "payload", "schema", "__deleted", "specversion", "id", "type", "data")
_NAMES += (
    "data_base64",
    "datacontenttype",
    "item_ids",
    "itemIds",
    "features_block",
    "schema_hash",
    "propensities",
    "exposed_at_ms",
    "scores",
)
_NAMES += (
    "reasons",
    "task",
    "messages",
    "role",
    "content",
    "answer",
    "usage",
    "prompt_tokens",
    "sampling",
    "stop",
    "finished_at_ms",
    "passage_ids",
)
_NAMES += ("typed_attributes", "typedAttributes", "text", "integer", "number", "boolean", "texts", "numbers", "values", "year")
_ODD = (None, True, False, 0, -1, 1001, 2**63, 1e308, "", "1001", "true", "null", "\ud800", "x" * 200, "[1]", "{}", "{")
_ODD += ("__debezium_unavailable_value",)


def written_by_the_router() -> dict[str, list[Triple]]:
    """Return what the router writes: exposures and answers, short and long, in Protobuf, and the same as JSON, bare and in CloudEvents."""
    found: dict[str, list[Triple]] = {}
    messages = {"exposure": exposure_pb2.Exposure, "generation": generation_pb2.Generation}
    records = {
        "exposure": [exposure_record(each) for each in _exposures()],
        "generation": [generation_record(each) for each in _generations()],
    }
    for noun, written in records.items():
        found[noun] = []
        for record in written:
            document = json_format.MessageToDict(messages[noun].FromString(record.value))
            event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "datacontenttype": "application/json", "data": document}
            found[noun] += [
                (record.key, record.value, record.headers),
                (record.key, b"\x00\x00\x00\x00\x07\x00" + record.value, []),
                (record.key, json.dumps(document).encode(), [("content-type", b"application/json")]),
                (record.key, json.dumps(event).encode(), [("content-type", b"application/cloudevents+json")]),
            ]
    return found


def with_attributes() -> dict[str, list[Triple]]:
    """Return an item and a profile with attributes of every kind, in all forms that a record may have."""
    typed = {"text": "Käse", "integer": 5, "number": 5.5, "boolean": True, "texts": ("a", "b"), "numbers": (0.5, 1.0), "none": ()}
    item, profile = catalog_item_pb2.CatalogItem(item_id="1", attributes={"old": "text"}), profile_pb2.Profile(user_id="1")
    write_attributes(typed, item.typed_attributes)
    write_attributes(typed, profile.attributes)
    found: dict[str, list[Triple]] = {}
    for noun, id_name, message in (("catalogue", "item_id", item), ("profile", "user_id", profile)):
        plain, ours = {id_name: "1", "attributes": typed}, json_format.MessageToDict(message)
        row = {"before": None, "after": {id_name: 1, "attributes": json.dumps(typed)}, "op": "c", "source": {}}
        forms = [(b"1", json.dumps(form).encode(), []) for form in (plain, ours, row, {"schema": {}, "payload": plain})]
        found[noun] = [(b"1", message.SerializeToString(), []), *forms]
    return found


def _exposures() -> Iterator[Exposure]:
    for count in (1, 100):
        query = Query(user_id="user-1", candidates=tuple(f"item-{number}" for number in range(count)), limit=count)
        answer = Recommendation(request_id="r1", experiment="e", variant="default", ranking=ranking_of(query))
        yield Exposure(user_id="user-1", exposed_at_ms=NOW_MS, idempotency_key="key", candidates_given=True, recommendation=answer)


def _generations() -> Iterator[Generation]:
    passage = Passage(passage_id="catalog:1", title="Heat", text="1995")
    for content in ("When?", "Wann? " * 200):
        yield Generation(
            question=Question(user_id="u", text=content, task="helpdesk", sampling=Sampling(seed=3, stop=("END",)), context=(passage,)),
            header=Header(
                request_id="r1",
                experiment="e",
                variant="default",
                model_version="M--helpdesk--v1",
                prompt_version="answer@v3",
                degraded_reason="",
                passages=(passage,),
            ),
            messages=(Message(role="system", content="Answer."), Message(role="user", content=content)),
            answer="In 1995.",
            finish_reason="stop",
            usage=Usage(prompt_tokens=20, completion_tokens=5),
            started_at_ms=NOW_MS - 2,
            first_token_at_ms=NOW_MS - 1,
            finished_at_ms=NOW_MS,
        )


def nearly_right(originals: Iterable[Triple], count: int, *, seed: int) -> Iterator[Triple]:
    """Yield `count` records."""
    known, damage = list(originals), Damage(seed)
    rng, values = damage.random, [value or b"" for _, value, _ in known]
    for _ in range(count):
        key, value, headers = rng.choice(known)
        choice = rng.randrange(6)
        if choice == 5 and (value or b"")[:1] == b"{":
            value = json.dumps(damage.of_json(json.loads(value or b""))).encode("utf-8", "surrogatepass")
        elif choice == 0:
            value = json.dumps(odd_json(rng, 0)).encode("utf-8", "surrogatepass")
        elif choice == 1:
            key = json.dumps(odd_json(rng, 0)).encode("utf-8", "surrogatepass")
            value = rng.choice((None, b"null", value))
        elif choice == 2:
            headers = [("content-type", rng.choice(_TYPES).encode())]
        else:
            value = damage.of_bytes(values)
        yield key, value, headers


def odd_json(rng: random.Random, depth: int) -> Any:
    """Return a JSON value made of names that readers look at."""
    choice = rng.randrange(5)
    if choice == 0 or depth > 3:
        return rng.choice(_ODD)
    if choice == 1:
        return [odd_json(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(_NAMES): odd_json(rng, depth + 1) for _ in range(rng.randrange(6))}
