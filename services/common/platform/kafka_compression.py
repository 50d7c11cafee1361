"""How the mesh's producers compress what they write: the one setting, and what a client makes of it.

Knows neither client, no topic and no message type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from services.common.platform.errors import ConfigurationError
from services.common.platform.kafka_batches import import_fault

Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
"""Kafka's names."""


def compression_type(compression: Compression, packages: Mapping[str, tuple[str, str]]) -> str | None:
    """Return a client's own value of `compression_type`; None means that it compresses nothing.

    Asked before a client is made: without the package both clients fail when they connect, with an error that no reconnecting ends.

    Args:
        compression: the setting.
        packages: by codec, (module, package) that the client needs: KAFKA_PYTHON_PACKAGES or AIOKAFKA_PACKAGES.
    Raises:
        ConfigurationError: the codec's package is not installed, or does not import.
    """
    module, package = packages.get(compression, ("", ""))
    fault = import_fault(module) if module else ""
    if fault:
        raise ConfigurationError(
            f"TUNEMESH_KAFKA_COMPRESSION={compression}: the Python package {package} {fault}: install the environment's lock file "
            "again (`make setup`), or choose gzip or none"
        )
    return None if compression == "none" else compression
