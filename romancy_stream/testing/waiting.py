"""What an instance waits for, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from romancy_stream.engine.commit import BACKING_OFF
from romancy_stream.engine.projection import InstanceState
from romancy_stream.instances import moment


def texts(state: InstanceState) -> list[str]:
    """One line each."""
    return [*_activities(state), *_others(state), *_timers(state)] or [
        "something of its own, such as a future or a queue"
    ]


def _activities(state: InstanceState) -> Iterator[str]:
    for activity in state.activities.values():
        told = f"activity {activity.activity_id} ({activity.name}, attempt {activity.attempt})"
        if activity.status == BACKING_OFF and activity.next_attempt_us is not None:
            told += f", again at {moment(activity.next_attempt_us).isoformat()}"
        yield told


def _others(state: InstanceState) -> Iterator[str]:
    for attrs in state.waits.values():
        yield f"event {attrs['type']!r}{_match(attrs)}"
    for attrs in state.receives.values():
        yield f"a message on channel {attrs['channel']!r}"
    for ref, attrs in state.joining.items():
        yield f"subscription {ref} to channel {attrs['channel']!r}"
    for ref, attrs in state.children.items():
        yield f"child {attrs.get('id', ref)} ({attrs.get('workflow', '')})"


def _match(attrs: dict[str, Any]) -> str:
    return f" that matches {orjson.dumps(attrs['match']).decode()}" if attrs.get("match") else ""


def _timers(state: InstanceState) -> Iterator[str]:
    for timer_id, due_us in state.timers.items():
        yield f"{timer_id}, due at {moment(due_us).isoformat()}"
