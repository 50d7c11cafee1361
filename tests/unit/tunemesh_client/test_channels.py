"""Whom the client calls in plaintext."""

import pytest

from tunemesh_client import AsyncClient, Client, Transport
from tunemesh_client.channels import is_local


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:50051",
        "127.8.9.1:1",
        "localhost:50051",
        "localhost",
        "[::1]:50051",
        "::1",
        "dns:///localhost:1",
        "dns:localhost:1",
        "ipv4:127.0.0.1:1",
        "ipv6:[::1]:1",
        "unix:/run/router.sock",
        "unix-abstract:router",
    ],
)
def test_addresses_of_this_machine_are_local(target) -> None:
    assert is_local(target)


@pytest.mark.parametrize(
    "target",
    [
        "router:50051",
        "10.0.0.1:50051",
        "[2001:db8::1]:50051",
        "2001:db8::1",
        "dns:///router.example:443",
        "dns://127.0.0.1/router.example:443",
        "ipv4:10.0.0.1:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "localhost.example:1",
        "127.0.0.1.example:1",
        "",
    ],
)
def test_all_others_are_not(target) -> None:
    assert not is_local(target)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_plaintext_to_another_machine_must_be_asked_for(kind) -> None:
    for targets in (("router:50051",), ("127.0.0.1:1", "collector:50053")):
        with pytest.raises(ValueError, match=r"would be called in plaintext: give Transport\(credentials=…\)"):
            kind(*targets)
        kind(*targets, transport=Transport(plaintext=True))
