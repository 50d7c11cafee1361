"""Makes a kafka-python client, or leaves nothing behind. Imports in both environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka.errors import KafkaError

from services.common.platform.errors import Unavailable


def connected(cls: Any, bootstrap_servers: str, config: Mapping[str, Any]) -> Any:
    """Return cls(**config); when there is no broker, no thread and no descriptor are left behind.

    kafka-python (3.0.12) leaks both when a constructor fails, which a process that goes on trying does once a second.

    Args:
        cls: KafkaConsumer or KafkaProducer.
        bootstrap_servers: for the message.
        config: the client's settings.
    Raises:
        Unavailable: no broker answers there.
    """
    clients: list[Any] = []

    def client(**arguments: Any) -> Any:
        clients.append(cls.DEFAULT_CONFIG["kafka_client"](**arguments))
        return clients[-1]

    try:
        return cls(**config, kafka_client=client)
    except KafkaError as error:
        for leftover in clients:
            leftover.close()
        raise Unavailable(f"no Kafka broker at {bootstrap_servers}: {error!r}") from error
