"""When a schedule is due: pure functions of it and of the time of the log, right on days that have 23 or 25 hours. A
job at a fixed hour runs once on each day, after the gap if its time falls into it; one that runs every hour, or every
few minutes, runs in each real hour."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

if TYPE_CHECKING:
    from romancy_stream.schedule import Schedule

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_FIELDS: Final = 5
_ZONES: Final = 64
"""Zones kept: as many as an app may have branches."""
_REFERENCE: Final = datetime(2026, 1, 1, tzinfo=UTC)


@lru_cache(_ZONES)
def checked_zone(name: str) -> ZoneInfo:
    """ValueError for what is no time zone."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
        raise ValueError(f"timezone must be a name such as 'Europe/Berlin', not {name!r}") from error


def checked_cron(cron: str, timezone: str) -> None:
    """ValueError for what is no cron expression, or one that is never due."""
    fields = cron.split() if isinstance(cron, str) else []
    if len(fields) != _FIELDS:
        raise ValueError(f"cron must have the five fields minute, hour, day, month and weekday, not {cron!r}")
    try:
        next(CronSim(" ".join(fields), _REFERENCE.astimezone(checked_zone(timezone))))
    except CronSimError as error:
        raise ValueError(f"cron {cron!r}: {error}") from error
    except StopIteration:
        raise ValueError(f"cron {cron!r} is never due") from None


def next_after(schedule: Schedule, us: int) -> int | None:
    """The first time behind `us`; None: there is none."""
    if schedule.every_s is not None:
        step = schedule.every_s * 1_000_000
        return (us // step + 1) * step
    assert schedule.cron is not None
    begin = (_EPOCH + timedelta(microseconds=us)).astimezone(checked_zone(schedule.timezone))
    found = next(CronSim(schedule.cron, begin), None)
    return None if found is None else (found - _EPOCH) // _US


def between(schedule: Schedule, after_us: int, until_us: int) -> Iterator[int]:
    """Times behind `after_us`, before `until_us`."""
    due_us = next_after(schedule, after_us)
    while due_us is not None and due_us < until_us:
        yield due_us
        due_us = next_after(schedule, due_us)


def stamp(us: int, *, seconds: bool) -> str:
    """Of a time, in UTC, for the id of an instance: "2026-03-29T01:30Z"."""
    moment = _EPOCH + timedelta(microseconds=us)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ" if seconds else "%Y-%m-%dT%H:%MZ")


def as_datetime(us: int | None, timezone: str) -> datetime | None:
    return None if us is None else (_EPOCH + timedelta(microseconds=us)).astimezone(checked_zone(timezone))


def as_us(moment: datetime) -> int:
    """ValueError for a naive datetime."""
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ValueError(f"needs an aware datetime, {moment!r} has no time zone")
    return (moment - _EPOCH) // _US
