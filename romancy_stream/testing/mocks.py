"""What stands in for an activity in a test, and what was called. Values and choices only; `crew` runs them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, cast

from romancy_stream.activity import Activity
from romancy_stream.errors import ConfigurationError


class _Unset:
    def __repr__(self) -> str:
        return "unset"


UNSET: Final[Any] = _Unset()
NEVER: Final = timedelta.max
"""`takes=NEVER`: a mock that is not heard of again."""


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of an activity, real or mocked. `arguments` by name, in their declared types; `at` in the time of the
    environment."""

    activity: str
    arguments: dict[str, Any]
    attempt: int
    activity_id: str
    instance_id: str
    at: datetime

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


@dataclass(eq=False, slots=True)
class Mock:
    """`calls` of this mock. `remove()` brings the activity's own function back."""

    activity: Activity[Any, Any]
    returns: Any = UNSET
    raises: BaseException | type[BaseException] | None = None
    side_effect: Callable[..., Any] | None = None
    outcomes: Sequence[Any] | None = None
    takes: timedelta = timedelta(0)
    calls: list[Call] = field(default_factory=list)
    on_remove: Callable[[Mock], None] | None = None

    def __post_init__(self) -> None:
        given = [self.returns is not UNSET, self.raises is not None, self.side_effect is not None]
        given.append(self.outcomes is not None)
        if sum(given) > 1:
            raise TypeError(f"mock of {self.name!r}: give one of returns, raises, side_effect and outcomes")
        if self.outcomes is not None:
            self.outcomes = list(self.outcomes)
        if not isinstance(self.takes, timedelta) or self.takes < timedelta(0):
            raise ValueError(f"mock of {self.name!r}: takes is a timedelta of 0 or more, not {self.takes!r}")

    @property
    def name(self) -> str:
        return self.activity.name

    def remove(self) -> None:
        if self.on_remove is not None:
            self.on_remove(self)

    async def answer(self, *args: Any, **kwargs: Any) -> Any:
        """Raises what the mock is to raise; ConfigurationError when it has no outcome left."""
        if self.side_effect is not None:
            answer = self.side_effect(*args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer
        if self.raises is not None:
            raise self.raises
        outcome = self.returns
        if self.outcomes is not None:
            number = len(self.calls)
            if number > len(self.outcomes):
                raise ConfigurationError(f"mock of {self.name!r}: call {number}, and there are {number - 1} outcomes")
            outcome = self.outcomes[number - 1]
            if isinstance(outcome, BaseException) or (isinstance(outcome, type) and issubclass(outcome, BaseException)):
                raise outcome
        return outcome

    def instead_of(self) -> Activity[Any, Any]:
        """An activity with the same name, parameters and result."""
        stand_in = copy.copy(self.activity)
        stand_in.function = cast(Any, self.answer)
        stand_in.is_async, stand_in.takes_context, stand_in.transactional = True, False, False
        return stand_in


def name_of(activity: Activity[Any, Any] | str) -> str:
    if isinstance(activity, str):
        return activity
    if isinstance(activity, Activity):
        return activity.name
    raise TypeError(f"an activity or its name, not {activity!r}")


def arguments_of(activity: Activity[Any, Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """By name, defaults included."""
    parameters = list(inspect.signature(activity.__wrapped__).parameters.values())  # type: ignore[attr-defined]
    signature = inspect.Signature(parameters[1:] if activity.takes_context else parameters)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
