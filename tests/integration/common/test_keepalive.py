"""A client's keepalive as gRPC's libraries send it by default at most: every ten seconds, on a stream that says nothing."""

import pytest

from tests.contract.common.test_grpc_ends import Recorder, outlives_pings


@pytest.mark.deep
@pytest.mark.timeout(300)
async def test_a_silent_stream_outlives_pings_every_ten_seconds() -> None:
    await outlives_pings(Recorder(), every_ms=10_000, times=5)
