"""The client of Tunemesh: recommendations, streamed answers, and feedback about both, by gRPC or straight to Kafka.

`Client` blocks, `AsyncClient` is for asyncio; `EventProducer` and `AsyncEventProducer` write feedback and users' profiles to Kafka (extra
`kafka`).
Everything that can go wrong is a `TunemeshError`, which says whether a retry helps.
"""

from tunemesh_client.aio import AsyncAnswerStream, AsyncClient
from tunemesh_client.channels import Transport
from tunemesh_client.client import AnswerStream, Client
from tunemesh_client.errors import (
    AccessDenied,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Incomplete,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    TunemeshError,
    Unavailable,
)
from tunemesh_client.event_producer import AsyncEventProducer, EventProducer
from tunemesh_client.events import Written
from tunemesh_client.messages import Answer, Feedback, Item, Passage, Receipt, Recommendation, Sampling, Turn
from tunemesh_client.profiles import Profile
from tunemesh_client.retry import RetryPolicy

__all__ = [
    "AccessDenied",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "AsyncEventProducer",
    "Cancelled",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "EventProducer",
    "Feedback",
    "Incomplete",
    "Internal",
    "InvalidRequest",
    "Item",
    "NotFound",
    "Overloaded",
    "Passage",
    "Profile",
    "Receipt",
    "Recommendation",
    "RetryPolicy",
    "Sampling",
    "Transport",
    "TunemeshError",
    "Turn",
    "Unavailable",
    "Written",
]
