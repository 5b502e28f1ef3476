"""What a user can set about the connection to Kafka, and every limit of this package with its reason. It touches
nothing but the environment, and that only in `from_url`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from romancy_stream.errors import ConfigurationError

ENV_PREFIX = "ROMANCY_KAFKA_"
SECURITY = ("security_protocol", "sasl_mechanism", "username", "password", "cafile")
NUMBERS = (
    "session_timeout_ms",
    "heartbeat_interval_ms",
    "rebalance_timeout_ms",
    "delivery_limit_ms",
    "stall_limit_ms",
    "record_limit_bytes",
    "replication_factor",
)
FROM_URL = (*SECURITY, *NUMBERS)

# A JVM that was just started answers within seconds; a wrong address should be reported while somebody still watches.
CONNECT_LIMIT_S = 15.0
# One request. Longer than any pause of a healthy broker, shorter than anyone's patience.
REQUEST_TIMEOUT_MS = 30_000
RETRY_BACKOFF_MS = 100
# Idle connections are closed by brokers after 10 minutes: go first.
CONNECTIONS_MAX_IDLE_MS = 540_000
# How soon a moved leader or an added partition is noticed without an error that says so.
METADATA_MAX_AGE_MS = 30_000
# aiokafka leaves the group when nobody fetched for this long. Here backpressure is normal (a held partition, a worker
# whose slots are full) and liveness is shown by heartbeats, so a day stands for never.
MAX_POLL_INTERVAL_MS = 86_400_000
# Longest wait of an empty fetch: nearly all that an idle process does. A rewind or a release is served by the next
# fetch, so this bounds its delay.
FETCH_WAIT_MS = 500
# Per partition and fetch. A record larger than this still arrives, alone.
PARTITION_FETCH_LIMIT_BYTES = 1_048_576
FETCH_LIMIT_BYTES = 16 * 1_048_576


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Each one is explicit: a default of a client library changes under us, this does not."""

    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cafile: str | None = None
    # A dead member's partitions wait this long for a new owner; an event loop blocked for longer loses its own.
    session_timeout_ms: int = 10_000
    # A third of the session: two heartbeats may be lost.
    heartbeat_interval_ms: int = 3_000
    # How long the others wait for a member that is finishing a batch before they go on without it.
    rebalance_timeout_ms: int = 30_000
    # Largest record, as Kafka's default `message.max.bytes`. Raise it together with the topics' `max.message.bytes`.
    record_limit_bytes: int = 1_048_576
    # Largest batch for one partition in one request, unless a single record is larger.
    batch_limit_bytes: int = 262_144
    # What may wait in this process for acknowledgement before `send` waits.
    buffer_limit_bytes: int = 32 * 1_048_576
    # From `send` to the acknowledgement. Outlives the election of a leader and the restart of a broker.
    delivery_limit_ms: int = 30_000
    # Records in one `on_batch`: a few thousand rows make a commit efficient, more only make it late.
    batch_limit_records: int = 2_000
    # A position that stands still this long while records wait is a hung consumer, which is built anew.
    stall_limit_ms: int = 60_000
    compression: str | None = None
    # -1: what the broker is configured to use.
    replication_factor: int = -1

    def __post_init__(self) -> None:
        if self.security_protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
            raise ConfigurationError(
                f"security_protocol {self.security_protocol!r} is not one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"
            )
        if self.security_protocol.startswith("SASL") and (self.username is None or self.password is None):
            raise ConfigurationError(
                f"security_protocol={self.security_protocol} needs username and password: set {ENV_PREFIX}USERNAME and "
                f"{ENV_PREFIX}PASSWORD"
            )
        for name in NUMBERS:
            if getattr(self, name) < 1 and (name, getattr(self, name)) != ("replication_factor", -1):
                raise ConfigurationError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.heartbeat_interval_ms * 2 > self.session_timeout_ms:
            raise ConfigurationError("heartbeat_interval_ms must be at most half of session_timeout_ms")

    def client(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes."""
        arguments: dict[str, Any] = {
            "security_protocol": self.security_protocol,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            "connections_max_idle_ms": CONNECTIONS_MAX_IDLE_MS,
            "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        }
        if self.security_protocol in ("SSL", "SASL_SSL"):
            arguments["ssl_context"] = ssl.create_default_context(cafile=self.cafile)
        if self.security_protocol.startswith("SASL"):
            arguments["sasl_mechanism"] = self.sasl_mechanism
            arguments["sasl_plain_username"] = self.username
            arguments["sasl_plain_password"] = self.password
        return arguments

    def consumer(self) -> dict[str, Any]:
        """Keyword arguments of every consumer. Nobody's position is ever chosen by Kafka: reset policy "none"."""
        return {
            **self.client(),
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",  # foreign producers may use transactions
            "check_crcs": True,
            "fetch_max_wait_ms": FETCH_WAIT_MS,
            "fetch_min_bytes": 1,
            "fetch_max_bytes": FETCH_LIMIT_BYTES,
            "max_partition_fetch_bytes": max(PARTITION_FETCH_LIMIT_BYTES, self.record_limit_bytes),
        }

    def member(self) -> dict[str, Any]:
        """Keyword arguments of a consumer in a group."""
        return {
            **self.consumer(),
            "session_timeout_ms": self.session_timeout_ms,
            "heartbeat_interval_ms": self.heartbeat_interval_ms,
            "rebalance_timeout_ms": self.rebalance_timeout_ms,
            "max_poll_interval_ms": MAX_POLL_INTERVAL_MS,
        }


def from_url(
    url: str, settings: KafkaSettings | None, environ: Mapping[str, str] = os.environ
) -> tuple[str, KafkaSettings]:
    """`kafka://host:port,host:port?security_protocol=…` (or plain `host:port,…`) -> bootstrap servers and settings.

    What FROM_URL names can be set in three places: the URL wins over the environment (ROMANCY_KAFKA_...), which wins
    over `settings`.
    """
    parts = urlsplit(url if "://" in url else f"kafka://{url}")
    if parts.scheme != "kafka" or not parts.netloc:
        raise ConfigurationError(f"{url!r} is not a Kafka address: write kafka://host:port,host:port")
    if "@" in parts.netloc:
        raise ConfigurationError(
            f"put the credentials into {ENV_PREFIX}USERNAME and {ENV_PREFIX}PASSWORD, not into the URL"
        )
    query = dict(parse_qsl(parts.query))
    unknown = sorted(set(query) - set(FROM_URL))
    if unknown:
        raise ConfigurationError(f"unknown in the Kafka URL: {', '.join(unknown)}; known: {', '.join(FROM_URL)}")
    found = {name: environ[key] for name in FROM_URL if (key := ENV_PREFIX + name.upper()) in environ}
    return parts.netloc, _with(settings or KafkaSettings(), {**found, **query})


def _with(settings: KafkaSettings, changes: Mapping[str, str]) -> KafkaSettings:
    assert set(changes) <= {each.name for each in fields(KafkaSettings)}
    values: dict[str, Any] = dict(changes)
    for name in set(changes) & set(NUMBERS):
        try:
            values[name] = int(changes[name])
        except ValueError:
            raise ConfigurationError(f"{name} must be a whole number, not {changes[name]!r}") from None
    return replace(settings, **values)
