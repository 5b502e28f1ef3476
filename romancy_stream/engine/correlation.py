"""User events and the instances that wait for them. An event and a wait meet at an entity: on the partition of the
event's type and, where the app has declared one, the value of its key. Part of the core.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from romancy_stream.engine.batch import Batch
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.inputs import Received
from romancy_stream.wire.event import WireEvent

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore


def aimed_at(event: WireEvent) -> str | None:
    """The instance that a user event names, which may not exist."""
    return None


def entities_of(config: CoreConfig, event: WireEvent) -> Iterable[str]:
    """The entity that a user event goes to."""
    return ()


def user_event(core: EngineCore, batch: Batch, received: Received, event: WireEvent) -> None:
    core.starts.command(batch, received, event)
