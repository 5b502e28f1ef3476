"""Schedules as values: what is to be started when, and what is known of it. What they do is in `schedule_workflow`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, get_args

from romancy_stream.schedule_times import checked_cron, checked_zone
from romancy_stream.spans import in_seconds

Overlap = Literal["skip", "buffer", "allow"]

WORKFLOW_NAME: Final = "romancy.schedule"
_PREFIX: Final = "schedule:"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
"""Names become parts of instance ids and stand in commands."""
CATCH_UP: Final = timedelta(minutes=10)
"""A nightly job survives a deployment; nobody wants yesterday's job in the middle of the day unless he says so."""
LONGEST_EVERY: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Schedule:
    """`workflow` is started with `input` (JSON text; None: no input) at the times of `cron` in `timezone`, or at every
    multiple of `every_s` since 1970 UTC. A time that passed more than `catch_up_s` ago is missed. ValueError."""

    name: str
    workflow: str
    input: str | None = None
    cron: str | None = None
    every_s: int | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up_s: float = CATCH_UP.total_seconds()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"a schedule needs a name of letters, digits, '.', '_' and '-', at most 100, not {self.name!r}"
            )
        if (self.cron is None) == (self.every_s is None):
            raise ValueError(f"schedule {self.name!r}: give cron or every, one of them")
        if self.overlap not in get_args(Overlap):
            choices = ", ".join(map(repr, get_args(Overlap)))
            raise ValueError(f"schedule {self.name!r}: overlap must be one of {choices}, not {self.overlap!r}")
        if not self.catch_up_s >= 1:
            raise ValueError(f"schedule {self.name!r}: catch_up must be a second or more: no timer fires in no time")
        checked_zone(self.timezone)
        if self.cron is not None:
            checked_cron(self.cron, self.timezone)
        elif self.every_s is None or not 1 <= self.every_s <= LONGEST_EVERY.total_seconds():
            raise ValueError(f"schedule {self.name!r}: every must be 1 second to a year, not {self.every_s} s")


def whole_seconds(every: float | timedelta) -> int:
    """ValueError."""
    seconds = in_seconds(every)
    if seconds != int(seconds):
        raise ValueError(f"every must be whole seconds, not {every!r}")
    return int(seconds)


def schedule_id(name: str) -> str:
    """The instance that a schedule is."""
    return _PREFIX + name


@dataclass(slots=True)
class ScheduleState:
    """What a run of a schedule begins with. Times in microseconds since 1970 UTC. `since_us`: times up to here have
    been dealt with. `buffered_us`: a time that waits for the instance before it. `backfills`: (after, until), still to
    be filled."""

    schedule: Schedule
    paused: bool = False
    note: str | None = None
    since_us: int | None = None
    buffered_us: int | None = None
    backfills: list[tuple[int, int]] = field(default_factory=list)
    started: int = 0
    skipped: int = 0
    missed: int = 0
    triggered: int = 0
    last_us: int | None = None
    last_id: str | None = None
    running: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """What is known of a schedule. `next_run` None: it is paused, or there is none. `last_run`: the time for which the
    last instance, `last_instance_id`, was started. `running`: instances that the next one must not overlap with.
    `skipped`: times at which one was running; `missed`: times that nobody was there to see."""

    name: str
    workflow_name: str
    cron: str | None
    every: timedelta | None
    timezone: str
    overlap: Overlap
    catch_up: timedelta
    paused: bool
    note: str | None
    next_run: datetime | None
    last_run: datetime | None
    last_instance_id: str | None
    running: Sequence[str]
    started: int
    skipped: int
    missed: int
