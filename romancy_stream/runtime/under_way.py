"""A commit that is being written while the next batch is decided, and what it is about to change of what that batch has
to look up in the database. Values; no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from romancy_stream.engine.commit import Commit
from romancy_stream.engine.inputs import Input


class Needs(NamedTuple):
    """What a batch has to look up: ids of instances, names of entities, keys of messages that were taken in."""

    instances: Sequence[str]
    entities: Sequence[str]
    intake: Sequence[tuple[int, str]]


@dataclass(slots=True)
class UnderWay:
    """A commit that is being written. `written`: of all three of `Needs`, what it changes."""

    inputs: Sequence[Input]
    commit: Commit
    written: Set[object]
    task: asyncio.Task[None]
    durable: bool = False

    def changes(self, needs: Needs) -> bool:
        """Whether the database will tell something else once it is durable."""
        if self.commit.blobs or self.commit.deleted:
            return True
        return not all(map(self.written.isdisjoint, needs))


def written(commit: Commit) -> Set[object]:
    found: set[object] = {row.instance_id for row in chain(commit.instances, commit.updates)}
    found.update(row.instance_id for row in commit.rejections)
    found.update(commit.rejections_gone)
    found.update(row.entity for row in commit.entities)
    found.update(commit.entities_gone)
    found.update((part, digest) for part, digest, _ in commit.intake)
    found.update(row.entity for row in commit.members)
    found.update(row.entity for row in commit.items)
    found.update(entity for entity, *_ in commit.members_gone)
    found.update(entity for entity, _ in commit.items_gone)
    return found
