"""Answers a question to a run from its history: by a replay that nobody keeps, so that nothing can come of it. Part of
the core, for whoever has the workflow's code.
"""

from __future__ import annotations

from collections.abc import Sequence

from romancy_stream.engine.definitions import WorkflowDef
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.instance import LiveInstance, replay
from romancy_stream.engine.loop import StepTooLong, stepping_aside
from romancy_stream.engine.sealing import PLAIN, Blobs, Sealing
from romancy_stream.errors import InstanceParkedError
from romancy_stream.retry import RetryPolicy

_NO_BLOBS: Blobs = {}


def ask(
    definition: WorkflowDef,
    history: Sequence[HistoryEvent],
    name: str,
    payload: bytes | None,
    sealing: Sealing = PLAIN,
    blobs: Blobs = _NO_BLOBS,
) -> bytes:
    """The answer as raw JSON. `history`: of a run, whole. Raises what the handler raises, UnknownHandlerError,
    InvalidInputError, ReadOnlyError, and NonDeterminismError where the code is not that of the run."""
    live = LiveInstance(definition, history[0].instance_id, history[0].run, RetryPolicy(), sealing)
    live.known = blobs
    with stepping_aside():
        try:
            replay(live, history)
            handler = live.handlers.find("query", name)
            if handler is None:
                raise live.handlers.unknown("query", name)
            return live.handlers.query(handler, handler.decode(payload))
        except StepTooLong:
            raise InstanceParkedError(f"the code of instance {live.instance_id} does not come to rest") from None
        finally:
            live.evict()
