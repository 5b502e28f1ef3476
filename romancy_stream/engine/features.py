"""What the core can do beside running code, collected from the modules that do it. Each has any of these tables:

TELL      history event kind -> what the world outside hears of it
COMMANDS  type of a command to one instance -> what it does (the command's partition, first time: see the core)
AGAIN     type of a command -> what it does when it comes again
OPS       op of a mail to an instance -> what it does
ENTITIES  kind of entity, which is also how its names begin -> class
ENDINGS   kind of a workflow's last command -> what is recorded for it
TIMERS    how the ids of the engine's own timers begin -> what they do when they are due
LET_GO    functions that tell others what a run leaves behind when it ends

A new capability is a module with its tables here and, for what live code sees of it, a part of `LiveInstance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import (
    attempts,
    channels,
    correlation,
    offspring,
    operations,
    rates,
    runs,
    saga,
    signals,
    slots,
    telling,
)
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.entity import Entity
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Received, TimerDue
from romancy_stream.engine.instance import Command
from romancy_stream.engine.intake import digest
from romancy_stream.engine.mail import Mail
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

_MODULES: Final[tuple[ModuleType, ...]] = (
    telling,
    attempts,
    correlation,
    channels,
    signals,
    offspring,
    saga,
    runs,
    operations,
    slots,
    rates,
)


def _merged(name: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for module in _MODULES:
        part: dict[str, Any] = getattr(module, name, {})
        assert not table.keys() & part.keys(), f"{module.__name__}.{name} has what another module has"
        table |= part
    return table


Tell = Callable[[Batch, Entry, HistoryEvent], None]
TELL: Final[dict[str, Tell]] = _merged("TELL")
COMMANDS: Final[dict[str, Callable[[EngineCore, Batch, Received, WireEvent, Entry | None], None]]] = _merged("COMMANDS")
AGAIN: Final[dict[str, Callable[[EngineCore, Batch, Received, WireEvent, Entry | None], None]]] = _merged("AGAIN")
OPS: Final[dict[str, Callable[[EngineCore, Batch, Entry | None, Mail], None]]] = _merged("OPS")
ENTITIES: Final[dict[str, Callable[[str, int, CoreConfig], Entity]]] = _merged("ENTITIES")
ENDINGS: Final[dict[str, Callable[[EngineCore, Batch, Entry, Command], None]]] = _merged("ENDINGS")
TIMERS: Final[dict[str, Callable[[EngineCore, Batch, Entry, TimerDue], None]]] = _merged("TIMERS")
_LET_GO: Final[list[Tell]] = [each for module in _MODULES for each in getattr(module, "LET_GO", ())]


def let_go(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """`event` ends the run, or its code; the state does not know it yet."""
    for each in _LET_GO:
        each(batch, entry, event)


def entities_of(config: CoreConfig, event: WireEvent) -> Iterable[str]:
    """Entities that a message from outside may be for."""
    if event.type.startswith(w.RESERVED_PREFIX):
        return channels.entities_of(event)
    return correlation.entities_of(config, event)


def digests_of(event: WireEvent) -> Iterable[str]:
    """All that the intake table may hold of a message."""
    if event.type in COMMANDS:
        return (digest("command", event),)
    if event.type == w.CHANNEL_PUBLISH:
        return (digest("channel", event),)
    if event.type == w.START and w.X_REUSE in event.extensions:
        return (digest("start", event),)
    if event.type.startswith(w.RESERVED_PREFIX):
        return ()
    return (digest("target", event), digest("entity", event))
