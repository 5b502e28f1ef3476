"""What follows a failed attempt: another one later, or the end. Decided by the engine from what history says of the
activity, so that every owner of the partition decides alike."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from romancy_stream.engine.loop import LATEST_US
from romancy_stream.engine.projection import ActivityState
from romancy_stream.retry import RetryPolicy

FRAMEWORK_DEFAULT = RetryPolicy()


@dataclass(frozen=True, slots=True)
class Retry:
    next_at_us: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """`reason`: "terminal" | "exhausted" | "timeout"."""

    reason: str


def after_failure(
    key: str, activity: ActivityState, retryable: bool, now_us: int, retry_after_s: float | None = None
) -> Retry | GiveUp:
    """`key` identifies the activity and seeds the jitter. `retry_after_s` takes the place of the policy's delay."""
    policy = policy_of(activity.attrs)
    if not retryable:
        return GiveUp("terminal")
    if not policy.attempts_left(activity.attempt):
        return GiveUp("exhausted")
    delay_s = retry_after_s
    if delay_s is None:
        chance = Random(f"{key}/{activity.attempt}").random() if policy.jitter else 0.5
        delay_s = policy.delay_s(activity.attempt, chance)
    next_at_us = min(now_us + round(delay_s * 1_000_000), LATEST_US)
    max_duration_s = policy.max_duration
    if max_duration_s is not None and next_at_us > activity.scheduled_us + round(max_duration_s * 1_000_000):
        return GiveUp("exhausted")
    deadline_us = activity.attrs.get("deadline_us")
    if deadline_us is not None and next_at_us > deadline_us:
        return GiveUp("exhausted")
    return Retry(next_at_us)


def policy_of(attrs: dict[str, Any]) -> RetryPolicy:
    """The policy an `activity.scheduled` event was recorded with; left out where it is the framework's default."""
    recorded = attrs.get("policy")
    return FRAMEWORK_DEFAULT if recorded is None else RetryPolicy.from_json(recorded)
