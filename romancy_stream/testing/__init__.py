"""For users' own tests. `WorkflowEnvironment` runs workflows without a broker and without waiting; `replay` runs
recorded histories against the code; `activity_context` runs an activity that takes a `ctx` without an engine.
"""

from typing import TYPE_CHECKING, Any

from romancy_stream.errors import StuckError, UnmockedActivityError
from romancy_stream.testing.activities import TestedAttempt, activity_context

if TYPE_CHECKING:
    from romancy_stream.testing.environment import WorkflowEnvironment
    from romancy_stream.testing.histories import History, dump_history, load_history, replay
    from romancy_stream.testing.mocks import NEVER, Call, Mock
    from romancy_stream.testing.world import PublishedEvent

__all__ = [
    "NEVER",
    "Call",
    "History",
    "Mock",
    "PublishedEvent",
    "StuckError",
    "TestedAttempt",
    "UnmockedActivityError",
    "WorkflowEnvironment",
    "activity_context",
    "dump_history",
    "load_history",
    "replay",
]

_LATER = {
    "NEVER": "mocks",
    "Call": "mocks",
    "History": "histories",
    "Mock": "mocks",
    "PublishedEvent": "world",
    "WorkflowEnvironment": "environment",
    "dump_history": "histories",
    "load_history": "histories",
    "replay": "histories",
}


def __getattr__(name: str) -> Any:
    """Whoever tests activities alone loads no engine for it."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return value
