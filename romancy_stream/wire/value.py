"""`@value`: a slotted dataclass that type checkers keep frozen and Python does not. For the few classes of which a
workflow takes dozens: to refuse assignments, a frozen dataclass makes its own in a way that costs four times as much,
which was an eighth of the engine's time. Everything else is `@dataclass(frozen=True, slots=True)`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    return dataclass(slots=True, unsafe_hash=True)(cls)
