"""What the core is told about the app it works for. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from romancy_stream.engine.sealing import PLAIN, Sealing
from romancy_stream.retry import RetryPolicy

CACHED_INSTANCES: Final = 10_000
"""Live coroutines kept by one process: about 10 KB each, so 100 MB. Beyond it the least recently used is evicted
and replayed when something happens to it."""
EVENT_TTL_S: Final = 3_600.0
CHANNEL_RETENTION_S: Final = 7 * 86_400.0
HISTORY_WARNING: Final = 10_000
HISTORY_LIMIT: Final = 50_000
"""Events of one run. Replay takes 10 us an event: half a second, and a fifth of a gigabyte for all runs of a batch."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """`event_keys`: event type -> the field of its data by which it finds who waits for it; `event_models`: event type
    -> the type of its data. `event_ttl_s`: how long an event is kept that nobody waits for yet, 0: not at all.
    `channel_retention_s`: a message that nobody takes. `queue_rates`: microseconds between two attempts of a queue."""

    namespace: str
    partitions: int
    default_policy: RetryPolicy
    cached_instances: int = CACHED_INSTANCES
    event_keys: Mapping[str, str | None] = field(default_factory=dict)
    event_models: Mapping[str, Any] = field(default_factory=dict)
    event_ttl_s: float = EVENT_TTL_S
    channel_retention_s: float = CHANNEL_RETENTION_S
    history_warning: int = HISTORY_WARNING
    history_limit: int = HISTORY_LIMIT
    sealing: Sealing = PLAIN
    queue_rates: Mapping[str, int] = field(default_factory=dict)
