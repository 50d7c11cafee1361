"""How the client connects: addresses, TLS, limits on message sizes, and how quickly a server that came back is found."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

# gRPC's own pause between attempts to connect grows to two minutes: a server that came back would stay unseen for that long. What it calls
# the least backoff is no pause but the time that an attempt gets, handshakes included: TLS over a long way needs more than a pause.
_RECONNECT: dict[str, Any] = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    "grpc.min_reconnect_backoff_ms": 5_000,
}
_LOCAL_SCHEMES = ("unix:", "unix-abstract:")
_NAMED_SCHEMES = ("dns:", "ipv4:", "ipv6:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """How to reach the servers. The default is plaintext to this machine's own addresses, and nothing to any other."""

    credentials: grpc.ChannelCredentials | None = None
    """TLS, e.g. `grpc.ssl_channel_credentials()`; with a token: `grpc.composite_channel_credentials(…)`."""
    plaintext: bool = False
    """True: without credentials, call other machines in plaintext too (a private network, a mesh that adds TLS itself)."""
    max_message_bytes: int = 16 << 20
    """Largest message that is sent or received; the server has a limit of its own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further gRPC channel arguments, by name; they go before those set here."""

    def open(self, target: str) -> grpc.Channel:
        """Return a channel to `target`; it connects with the first call. Raises ValueError for plaintext to another machine."""
        if self.credentials is not None:
            return grpc.secure_channel(target, self.credentials, options=self._options(target))
        self._check_plaintext(target)
        return grpc.insecure_channel(target, options=self._options(target))

    def open_aio(self, target: str) -> grpc.aio.Channel:
        """As `open`, for the running event loop."""
        if self.credentials is not None:
            return grpc.aio.secure_channel(target, self.credentials, options=self._options(target))
        self._check_plaintext(target)
        return grpc.aio.insecure_channel(target, options=self._options(target))

    def check(self, target: str) -> None:
        """Raise ValueError when `target` may not be called like this."""
        if self.credentials is None:
            self._check_plaintext(target)

    def _check_plaintext(self, target: str) -> None:
        if not self.plaintext and not is_local(target):
            raise ValueError(
                f"{target} is not an address of this machine, and would be called in plaintext: give Transport(credentials=…) for TLS, "
                "or Transport(plaintext=True)"
            )

    def _options(self, target: str) -> list[tuple[str, Any]]:
        limit = self.max_message_bytes
        sizes = {"grpc.max_receive_message_length": limit, "grpc.max_send_message_length": limit}
        # gRPC asks the proxy of `http_proxy` for this machine's own addresses too.
        proxy = {"grpc.enable_http_proxy": 0} if is_local(target) else {}
        return list((_RECONNECT | sizes | proxy | dict(self.options)).items())


LOCAL_PLAINTEXT = Transport()


def is_local(target: str) -> bool:
    """Return whether a gRPC target never leaves this machine: a loopback address, "localhost", or a Unix socket."""
    if target.startswith(_LOCAL_SCHEMES):
        return True
    address = target
    for scheme in _NAMED_SCHEMES:
        address = address.removeprefix(scheme)
    address = address.rpartition("/")[2]  # dns:///host:port
    # An IPv6 address with a port stands in brackets, one without may stand alone.
    host = address.partition(":")[0] if address.count(":") == 1 else address.removeprefix("[").partition("]")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
