"""Groups inside one process: who reads which partition. As with Kafka's eager protocol, when anything changes all
members give up what they have, and when the last one has, partitions are dealt anew. Pure; no I/O, no handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from romancy_stream.broker.embedded.partition import Partition

if TYPE_CHECKING:
    from romancy_stream.broker.embedded.log import Topic


class Member(Protocol):
    @property
    def topics(self) -> Sequence[str]: ...

    def rebalance(self) -> None:
        """Give up your partitions, then `settle`."""
        ...


class Group:
    """Partition n of every topic goes to the same member, as far as the members read the same topics."""

    def __init__(self, topics: Mapping[str, Topic]) -> None:
        self.generation = 0
        self._topics = topics
        self._members: list[Member] = []
        self._settling: dict[Member, asyncio.Future[list[Partition] | None]] = {}

    def join(self, member: Member) -> None:
        self._members.append(member)
        self._ask_all()

    def leave(self, member: Member) -> None:
        """Idempotent. A `settle` of this member that is under way returns None."""
        if member not in self._members:
            return
        self._members.remove(member)
        waiting = self._settling.pop(member, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        self._ask_all()
        self._deal_if_all_settle()

    def topics_created(self, names: Iterable[str]) -> None:
        made = set(names)
        if any(made.intersection(member.topics) for member in self._members):
            self._ask_all()

    def _ask_all(self) -> None:
        for member in self._members:
            if member not in self._settling:
                member.rebalance()

    async def settle(self, member: Member) -> list[Partition] | None:
        """Called when `member` holds nothing any more; returns its new partitions when all others have settled too.
        None: it is not a member."""
        if member not in self._members:
            return None
        future: asyncio.Future[list[Partition] | None] = asyncio.get_running_loop().create_future()
        self._settling[member] = future
        self._deal_if_all_settle()
        try:
            return await future
        finally:
            if self._settling.get(member) is future:
                del self._settling[member]

    def _deal_if_all_settle(self) -> None:
        if not self._members or len(self._settling) < len(self._members):
            return
        self.generation += 1
        settling, self._settling = self._settling, {}
        dealt = self._deal()
        for member, future in settling.items():
            if not future.done():
                future.set_result(dealt[member])

    def _deal(self) -> dict[Member, list[Partition]]:
        dealt: dict[Member, list[Partition]] = {member: [] for member in self._members}
        for name in sorted({name for member in self._members for name in member.topics}):
            topic = self._topics.get(name)
            if topic is None:
                continue
            readers = [member for member in self._members if name in member.topics]
            count = len(topic.partitions)
            for p in topic.partitions:
                dealt[readers[p.number * len(readers) // count]].append(p)
        return dealt
