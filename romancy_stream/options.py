"""How an instance is to be started, beside its input: a value that travels with a workflow (`with_options`) or stands
beside the input of a call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

from romancy_stream.engine.loop import LATEST_US
from romancy_stream.spans import in_seconds, in_us

OnConflict = Literal["use_existing", "fail"]
Reuse = Literal["reject_duplicate", "allow_failed", "allow_finished"]
ParentClose = Literal["cancel", "abandon"]

START_OPTIONS: Final = ("instance_id", "on_conflict", "reuse", "start_delay", "start_at")
CHILD_OPTIONS: Final = ("instance_id", "parent_close", "start_delay", "start_at")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "on_conflict": get_args(OnConflict),
    "reuse": get_args(Reuse),
    "parent_close": get_args(ParentClose),
}


def checked_instance_id(instance_id: object) -> str:
    """ValueError for what is no id, wherever one is given."""
    if not isinstance(instance_id, str) or not instance_id:
        raise ValueError(f"instance_id must be a text that is not empty, not {instance_id!r}")
    return instance_id


@dataclass(frozen=True, slots=True)
class StartOptions:
    """`start_delay`: seconds, or a timedelta; `start_at`: an aware datetime; not both. `parent_close` is for children.
    ValueError, TypeError for what is none of that."""

    instance_id: str | None = None
    on_conflict: OnConflict = "use_existing"
    reuse: Reuse | None = None
    start_delay: float | timedelta | None = None
    start_at: datetime | None = None
    parent_close: ParentClose = "cancel"

    def __post_init__(self) -> None:
        if self.instance_id is not None:
            checked_instance_id(self.instance_id)
        for name, choices in _CHOICES.items():
            chosen = getattr(self, name)
            if chosen not in choices and not (chosen is None and name == "reuse"):
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {chosen!r}")
        if self.start_delay is not None and self.start_at is not None:
            raise ValueError("start_delay and start_at: give one of them")
        if self.start_delay is not None:
            _delay_us(self.start_delay)
        at = self.start_at
        if at is not None and (not isinstance(at, datetime) or at.utcoffset() is None):
            raise ValueError(f"start_at must be an aware datetime, not {at!r}")

    def changed(self, given: Mapping[str, Any]) -> StartOptions:
        """None keeps what was set; a delay takes the place of a time, and the other way round."""
        changes = {name: value for name, value in given.items() if value is not None}
        if "start_at" in changes:
            changes.setdefault("start_delay", None)
        elif "start_delay" in changes:
            changes["start_at"] = None
        return replace(self, **changes)

    def begin_us(self, now_us: int) -> int | None:
        """When the code is to begin; None: at once."""
        if self.start_at is not None:
            return min((self.start_at - _EPOCH) // _US, LATEST_US)
        if self.start_delay is not None:
            return min(now_us + _delay_us(self.start_delay), LATEST_US)
        return None


def _delay_us(delay: float | timedelta) -> int:
    delay_s = in_seconds(delay)
    if not isinstance(delay_s, int | float) or not math.isfinite(delay_s):
        raise ValueError(f"start_delay must be seconds or a timedelta, not {delay!r}")
    us = in_us(delay)
    if us < 0:
        raise ValueError(f"start_delay must not be negative: {delay!r}")
    return us
