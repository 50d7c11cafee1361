"""What keeps a worker out of its group, as aiokafka keeps it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, InvalidSessionTimeoutError

from services.common.platform.errors import ConfigurationError
from streams.worker import StreamFailed, check_membership


def app_of(error: Exception | None) -> SimpleNamespace:
    coordinator = SimpleNamespace(_pending_exception=error)
    consumer = SimpleNamespace(_thread=SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator)))
    return SimpleNamespace(consumer=consumer, conf=SimpleNamespace(id="tunemesh-joiner", broker_session_timeout=3.0))


def test_a_session_that_the_broker_does_not_take_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"no session of 3000 ms in group tunemesh-joiner: set SESSION_TIMEOUT_MS"):
        check_membership(app_of(InvalidSessionTimeoutError()))


def test_any_other_refusal_ends_the_worker_and_names_the_group() -> None:
    with pytest.raises(StreamFailed, match=r"out of group tunemesh-joiner: .*GroupAuthorizationFailed"):
        check_membership(app_of(GroupAuthorizationFailedError("tunemesh-joiner")))


@pytest.mark.parametrize("app", [app_of(None), SimpleNamespace(consumer=None), SimpleNamespace(consumer=SimpleNamespace(_thread=None))])
def test_a_member_and_an_app_that_is_not_yet_connected_are_let_alone(app: SimpleNamespace) -> None:
    check_membership(app)
