"""What a worker asks the database about tasks before it begins them: those that may have been done before, those that
another worker still runs, and what earlier attempts left behind. One question for many tasks, and none for those that
are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from romancy_stream.engine.commit import ActivityKey, Heartbeat, RecordedResult
from romancy_stream.engine.tasks import Task
from romancy_stream.runtime.patience import as_long_as_it_takes
from romancy_stream.store.database import finished
from romancy_stream.store.port import Detached, Store


@dataclass(frozen=True, slots=True)
class Known:
    results: Mapping[ActivityKey, RecordedResult] = field(default_factory=dict)
    heartbeats: Mapping[ActivityKey, Heartbeat] = field(default_factory=dict)
    detached: Mapping[ActivityKey, Detached] = field(default_factory=dict)

    def details(self, task: Task) -> bytes | None:
        heartbeat = self.heartbeats.get(task.key)
        return None if heartbeat is None else heartbeat.details

    def elsewhere(self, task: Task) -> bool:
        """A worker has committed past this attempt, and its lease stands for it: whether it lives is for the engine to
        find out, which then sends another task."""
        found = self.detached.get(task.key)
        return found is not None and found.attempt >= task.attempt and found.incarnation != task.lapsed


NOTHING: Final = Known()


def has_past(task: Task) -> bool:
    """Whether there may be heartbeats of an earlier attempt."""
    return task.attempt > 1 or task.options.heartbeat_timeout_s is not None or task.lapsed is not None


async def look_up(store: Store, suspects: Sequence[Task], others: Sequence[Task]) -> Known:
    """Waits for the database. `suspects` may have been worked on before; of `others` only heartbeats are wanted."""
    again = [task for task in others if has_past(task)]
    if not suspects and not again:
        return NOTHING
    return await as_long_as_it_takes(lambda: finished(_look_up(store, suspects, again)), "tasks wait for the database")


async def _look_up(store: Store, suspects: Sequence[Task], again: Sequence[Task]) -> Known:
    keys = list({task.key for task in suspects})
    beaten = list({task.key for task in (*suspects, *again)})
    return Known(await store.results(keys), await store.heartbeats(beaten), await store.detached(keys))
