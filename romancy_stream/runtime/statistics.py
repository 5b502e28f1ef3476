"""What a process has done and has before it, as one value: a snapshot to look at or to hand to a metrics system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from romancy_stream.runtime.worker import WorkerStatistics


@dataclass(frozen=True, slots=True)
class Stats:
    """`partitions` that this process's engine owns, `instances` that it has in memory, `timers` that are open in them.
    `dropped`: what it has left aside on purpose since it began, by reason: duplicates, late results, events that
    nobody wants. `unsent`: messages on their way to the broker; `held`: those that the broker refuses, with what waits
    behind them. `worker` None: no activities run in this process. `listeners_dropped`: what listeners have missed."""

    partitions: int = 0
    instances: int = 0
    timers: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    unsent: int = 0
    held: int = 0
    worker: WorkerStatistics | None = None
    listeners_dropped: int = 0
