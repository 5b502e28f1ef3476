"""Entities: what lives on the partition of its own name, so that those who wait and those who send meet at one
writer. This is what they have in common: members and items by number, and the rows that a batch has changed. What an
entity does with them is the matter of its kind. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from romancy_stream.engine.commit import Commit, EntityRow, ItemRow, MemberRow
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.mail import Mail

if TYPE_CHECKING:
    from romancy_stream.engine.batch import Batch

MemberKey = tuple[str, str]  # instance id, ref


@dataclass(slots=True)
class Member:
    """`attrs` is small and JSON-able. Call `Entity.changed_member` after a change."""

    instance_id: str
    ref: str
    run: int
    seq: int
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Item:
    """`attrs` is small and JSON-able, `payload` raw JSON."""

    seq: int
    at_us: int
    expires_us: int | None
    attrs: dict[str, Any]
    payload: bytes | None


class Entity:
    """Base of the kinds. `head` is small and JSON-able; `members` and `items` stand in the order of their numbers."""

    kind = ""
    lasting = False
    """Whether it stays when it has neither members nor items."""

    def __init__(self, name: str, part: int, config: CoreConfig) -> None:
        self.name = name
        self.part = part
        self.config = config
        self.head: dict[str, Any] = {}
        self.members: dict[MemberKey, Member] = {}
        self.items: dict[int, Item] = {}
        self._stored = False
        self._last = 0
        self._head_before = b""
        self._members_changed: dict[MemberKey, bool] = {}  # -> was it in the database?
        self._items_changed: dict[int, bool] = {}

    # -- what a kind implements ----------------------------------------------------------------------------------
    def told(self, batch: Batch, mail: Mail) -> None:
        """Mail from an instance, or from the partition where a message for it came in."""
        raise NotImplementedError

    def expired(self, batch: Batch, seq: int) -> None:
        """An item's time is over. It may be gone already."""
        self.drop_item(seq)

    # -- what it works with --------------------------------------------------------------------------------------
    def join(self, instance_id: str, ref: str, run: int, attrs: dict[str, Any]) -> Member:
        member = Member(instance_id, ref, run, self._number(), attrs)
        self._members_changed.setdefault((instance_id, ref), (instance_id, ref) in self.members)
        self.members.pop((instance_id, ref), None)  # it stands at the end now
        self.members[instance_id, ref] = member
        return member

    def changed_member(self, member: Member) -> None:
        self._members_changed.setdefault((member.instance_id, member.ref), True)

    def leave(self, instance_id: str, ref: str) -> Member | None:
        member = self.members.pop((instance_id, ref), None)
        if member is not None:
            self._members_changed.setdefault((instance_id, ref), True)
        return member

    def keep(self, at_us: int, expires_us: int | None, attrs: dict[str, Any], payload: bytes | None) -> Item:
        item = Item(self._number(), at_us, expires_us, attrs, payload)
        self._items_changed.setdefault(item.seq, False)
        self.items[item.seq] = item
        return item

    def changed_item(self, item: Item) -> None:
        self._items_changed.setdefault(item.seq, True)

    def drop_item(self, seq: int) -> Item | None:
        item = self.items.pop(seq, None)
        if item is not None:
            self._items_changed.setdefault(seq, True)
        return item

    def _number(self) -> int:
        self._last += 1
        return self._last

    # -- rows ----------------------------------------------------------------------------------------------------
    def load(self, row: EntityRow, members: list[MemberRow], items: list[ItemRow]) -> None:
        self._stored, self._head_before = True, row.head
        self.head = orjson.loads(row.head)
        self._last = self.head.pop("last", 0)
        for m in sorted(members, key=lambda each: each.seq):
            self.members[m.instance_id, m.ref] = Member(m.instance_id, m.ref, m.run, m.seq, orjson.loads(m.attrs))
        for i in sorted(items, key=lambda each: each.seq):
            self.items[i.seq] = Item(i.seq, i.at_us, i.expires_us, orjson.loads(i.attrs), i.payload)

    def write(self, commit: Commit, now_us: int) -> None:
        """What the batch has changed. Numbers begin anew after an empty one was removed: nothing refers to them."""
        self._write_head(commit, now_us)
        for (instance_id, ref), before in self._members_changed.items():
            member = self.members.get((instance_id, ref))
            if member is not None:
                attrs = orjson.dumps(member.attrs)
                commit.members.append(MemberRow(self.name, instance_id, ref, member.run, member.seq, attrs))
            elif before:
                commit.members_gone.append((self.name, instance_id, ref))
        for seq, before in self._items_changed.items():
            item = self.items.get(seq)
            if item is not None:
                attrs = orjson.dumps(item.attrs)
                commit.items.append(
                    ItemRow(self.name, seq, self.part, item.at_us, item.expires_us, attrs, item.payload)
                )
            elif before:
                commit.items_gone.append((self.name, seq))
        self._members_changed.clear()
        self._items_changed.clear()

    def _write_head(self, commit: Commit, now_us: int) -> None:
        if not (self.members or self.items or self.lasting):
            if self._stored:
                commit.entities_gone.append(self.name)
            self._stored, self._last, self._head_before = False, 0, b""
            return
        head = orjson.dumps({**self.head, "last": self._last})
        if head != self._head_before:
            commit.entities.append(EntityRow(self.name, self.part, self.kind, head, now_us))
            self._stored, self._head_before = True, head
