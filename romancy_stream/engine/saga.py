"""Cancelling, and undoing what was done: compensations run in reverse order, each recorded before the next. Part of
the core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import ActivityKey
from romancy_stream.engine.inputs import Input

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore


def closings(core: EngineCore, inputs: Sequence[Input]) -> Iterable[ActivityKey]:
    """Activities that a cancelled instance may have completed unheard: see `Attempts.closings`."""
    return ()


def undone(batch: Batch, entry: Entry, kind: str, ref: str, attrs: dict[str, Any], payload: bytes | None) -> None:
    """A compensation has come to its end."""
    raise NotImplementedError
