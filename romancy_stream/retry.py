"""How failed activity attempts are repeated. A value: the engine decides with it, workers only report. It goes
into the log with the activity, so classes are matched by import path, without importing them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from romancy_stream.spans import in_seconds

ErrorClass = type[BaseException] | str

# Repeating the work cannot mend these: the error is the user's verdict, or a value that has no JSON form.
NEVER_RETRIED: Final = frozenset(
    {
        "romancy_stream.errors:TerminalError",
        "romancy_stream.errors:PayloadError",
        "romancy_stream.errors:InvalidInputError",
    }
)

MAX_ATTEMPTS: Final = 2**31 - 1
"""The number of an attempt is an INTEGER in the database."""


@dataclass(frozen=True, slots=True, init=False)
class RetryPolicy:
    """Times in seconds (a timedelta is accepted). `max_attempts` counts the first attempt too; 0 or None: no
    limit. `max_duration` is counted from the moment the activity was scheduled.

    The wait after attempt n is min(initial_interval * multiplier^(n-1), max_interval). `jitter` 0..1 is the part
    of it that may be taken off at random, so that a crowd does not come back at once.
    """

    max_attempts: int | None
    initial_interval: float
    multiplier: float
    max_interval: float
    max_duration: float | None
    jitter: float
    retry_on: tuple[ErrorClass, ...]
    do_not_retry_on: tuple[ErrorClass, ...]

    def __init__(
        self,
        max_attempts: int | None = 5,
        initial_interval: float | timedelta = 1.0,
        multiplier: float = 2.0,
        max_interval: float | timedelta = 60.0,
        max_duration: float | timedelta | None = None,
        jitter: float = 0.0,
        retry_on: ErrorClass | Iterable[ErrorClass] = (Exception,),
        do_not_retry_on: ErrorClass | Iterable[ErrorClass] = (),
    ) -> None:
        values = {
            "max_attempts": _attempts(max_attempts),
            "initial_interval": _number("initial_interval", initial_interval, least=0.0),
            "multiplier": _number("multiplier", multiplier, least=1.0),
            "max_interval": _number("max_interval", max_interval, least=0.0),
            "max_duration": None if max_duration is None else _positive("max_duration", max_duration),
            "jitter": _number("jitter", jitter, least=0.0, most=1.0),
            "retry_on": _classes("retry_on", retry_on),
            "do_not_retry_on": _classes("do_not_retry_on", do_not_retry_on),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def default(cls) -> RetryPolicy:
        return cls()

    @classmethod
    def none(cls) -> RetryPolicy:
        """One attempt."""
        return cls(max_attempts=1)

    @classmethod
    def fixed(cls, max_attempts: int | None = 5, interval: float | timedelta = 1.0) -> RetryPolicy:
        return cls(max_attempts, interval, multiplier=1.0, max_interval=interval)

    @classmethod
    def exponential(
        cls,
        max_attempts: int | None = 5,
        initial_interval: float | timedelta = 1.0,
        max_interval: float | timedelta = 60.0,
    ) -> RetryPolicy:
        return cls(max_attempts, initial_interval, max_interval=max_interval)

    def delay_s(self, attempt: int, random: float = 0.0) -> float:
        """The wait after attempt number `attempt` (from 1) failed. `random` in [0, 1) decides the jitter."""
        if attempt < 1:
            raise ValueError(f"attempt counts from 1, not {attempt}")
        try:
            grown = self.initial_interval * self.multiplier ** (attempt - 1)
        except OverflowError:
            grown = self.max_interval if self.initial_interval else 0.0
        return min(grown, self.max_interval) * (1.0 - self.jitter * random)

    def attempts_left(self, attempt: int) -> bool:
        """Whether another attempt may follow attempt number `attempt`."""
        return self.max_attempts is None or attempt < self.max_attempts

    def is_retryable(self, error: BaseException) -> bool:
        return self.allows(class_paths(type(error)))

    def allows(self, class_names: Iterable[str]) -> bool:
        """As `is_retryable`, for an error that is known only by the import paths of its class and bases."""
        names = frozenset(class_names)
        if names & NEVER_RETRIED or any(_path(c) in names for c in self.do_not_retry_on):
            return False
        return any(_path(c) in names for c in self.retry_on)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; classes as "module:Qualname"."""
        return {
            "max_attempts": self.max_attempts,
            "initial_interval": self.initial_interval,
            "multiplier": self.multiplier,
            "max_interval": self.max_interval,
            "max_duration": self.max_duration,
            "jitter": self.jitter,
            "retry_on": [_path(c) for c in self.retry_on],
            "do_not_retry_on": [_path(c) for c in self.do_not_retry_on],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RetryPolicy:
        """Absent fields take their default. The classes stay names."""
        return cls(**{name: value[name] for name in cls.__slots__ if name in value})


# -- names of classes ------------------------------------------------------------------------------------------
@cache
def main_module() -> str | None:
    """What `__main__` is called when another process imports it: `python shop.py` and `romancy worker shop:app`
    must agree on the name of a class."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else None


def class_path(cls: type) -> str:
    """Import path "module:Qualname"."""
    module = cls.__module__
    if module == "__main__":
        module = main_module() or module
    return f"{module}:{cls.__qualname__}"


def class_paths(cls: type[BaseException]) -> tuple[str, ...]:
    """The class and its bases, nearest first."""
    return tuple(class_path(c) for c in cls.__mro__ if c is not object)


def _path(cls: ErrorClass) -> str:
    return cls if isinstance(cls, str) else class_path(cls)


# -- validation ------------------------------------------------------------------------------------------------
def _attempts(value: int | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_ATTEMPTS:
        raise ValueError(
            f"max_attempts must be a whole number from 0 (no limit) to {MAX_ATTEMPTS:,}, or None, not {value!r}"
        )
    return value or None


def _number(name: str, value: float | timedelta, *, least: float, most: float = math.inf) -> float:
    number = in_seconds(value)
    if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    if not least <= number <= most:
        bound = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise ValueError(f"{name} must be {bound}, not {value!r}")
    return float(number)


def _positive(name: str, value: float | timedelta) -> float:
    number = _number(name, value, least=0.0)
    if number == 0.0:
        raise ValueError(f"{name} must be more than 0")
    return number


def _classes(name: str, value: ErrorClass | Iterable[ErrorClass]) -> tuple[ErrorClass, ...]:
    classes = (value,) if isinstance(value, str | type) else tuple(value)
    for cls in classes:
        if not (isinstance(cls, str) and ":" in cls) and not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise ValueError(f'{name} must hold exception classes or their "module:Qualname", not {cls!r}')
    return classes
