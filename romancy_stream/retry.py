"""How failed activity attempts are repeated. A value: the engine decides with it, workers only report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds. `max_attempts` counts the first attempt too; 0 or None: no limit."""

    max_attempts: int | None = 5
