"""User events and the instances that wait for them. An event that names an instance goes there. Any other meets those
who wait for it at an entity: on the partition of the event's type and, where the app has declared one, the value of its
key. The entity offers an event to every wait that it fits, and keeps it until they have answered; what finds nobody
stays for its time to live, for the first wait that comes. Part of the core.

    _arrived ──► "start"   an instance of the workflow that handles the type    (see starts)
             ├─► "target"  the partition of the instance that the event names ──► its open wait, or its mailbox
             │                                                   └─ none open ─┐
             └─► "entity"  the partition of type and key ◄─────────────────────┘
                              │ "event"                    ▲ "wait", "unwait", "accepted", "refused"
                              ▼                            │
                           instances that wait ────────────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import orjson

from romancy_stream.engine import history as h
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import EntityRow, ItemRow, MemberRow
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.entity import Entity, Item, Member, MemberKey
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Received
from romancy_stream.engine.intake import digest
from romancy_stream.engine.mail import Mail
from romancy_stream.engine.matching import (
    ENTITY_PREFIX,
    Document,
    Kept,
    Paths,
    Values,
    Waiting,
    entity_of_event,
    first_match,
    wanted,
)
from romancy_stream.engine.sealing import is_sealed
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import MAX_DATA_BYTES, MAX_WRAPPED_BYTES

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

KEPT_EVENTS: Final = 10_000
"""Of one entity, which is read and held as a whole: beyond it the oldest is dropped."""
KEPT_BYTES: Final = 64 * 2**20
"""Of the data of these together."""
WRAPPING: Final = 100
"""Bytes around data and attributes in the message that offers an event."""
SHOWN_CHARS: Final = 200
"""Of the value of a key in an entity's head, for people to read."""

START, TARGET, ENTITY = "start", "target", "entity"
"""What a user event is handed on for, in X_ROUTE."""
_OURS: Final = frozenset({w.X_ORIGIN, w.X_ROUTE, w.X_REF})

WAIT, UNWAIT, ACCEPTED, REFUSED, OFFER = "wait", "unwait", "accepted", "refused", "event"
OFFERED: Final = "offered"


# -- where a user event goes -----------------------------------------------------------------------------------------
def aimed_at(event: WireEvent) -> str | None:
    """The instance that a user event names, which may not exist."""
    return _instance_named(event) or event.subject


def _instance_named(event: WireEvent) -> str | None:
    # What an instance has published says whose it is in the same attribute; causation tells the two apart.
    return None if w.X_CAUSATION_SOURCE in event.extensions else event.extensions.get(w.X_INSTANCE)


def entities_of(config: CoreConfig, event: WireEvent) -> Iterable[str]:
    """The entity that a user event goes to, and the one it was handed on for."""
    name = entity_of_event(config.event_keys, event.type, Document(event.data))
    handed = event.extensions.get(w.X_REF, "")
    return [each for each in (name, handed) if each and each.startswith(ENTITY_PREFIX)]


def user_event(core: EngineCore, batch: Batch, received: Received, event: WireEvent) -> None:
    bare = _with(event)
    route = event.extensions.get(w.X_ROUTE) if _is_ours(batch, received, event) else None
    if route == START:
        _start(core, batch, received, bare)
    elif route == TARGET:
        _targeted(core, batch, received, bare)
    elif route == ENTITY:
        _meet(core, batch, bare, event.extensions[w.X_REF])
    else:
        _arrived(core, batch, received, bare)


def _is_ours(batch: Batch, received: Received, event: WireEvent) -> bool:
    """Whether another partition has handed it on."""
    return received.record.topic == batch.topics.results and w.X_ORIGIN in event.extensions


def _with(event: WireEvent, **marks: str) -> WireEvent:
    """Without the marks of handing on, and with these."""
    extensions = {name: text for name, text in event.extensions.items() if name not in _OURS}
    return WireEvent(event.id, event.source, event.type, event.subject, event.data, event.time, {**extensions, **marks})


def _arrived(core: EngineCore, batch: Batch, received: Received, event: WireEvent) -> None:
    part = received.record.partition
    if is_sealed(event.data):  # before it stands in somebody's history
        message = "the data of an event is matched with waits, and so cannot be encoded: begin it with another key"
        batch.dead_letter(received, "unreadable_data", message, event.source, event.id)
        return
    if _starts(core, event):
        core.starts.command(batch, received, _with(event, **{w.X_ROUTE: START}))
    aimed = aimed_at(event)
    if aimed is None:
        _correlate(core, batch, received, event)
    elif core.part_of(aimed) == part:
        _targeted(core, batch, received, event)
    else:
        batch.forward(part, aimed, _with(event, **{w.X_ROUTE: TARGET}))


def _starts(core: EngineCore, event: WireEvent) -> bool:
    definition = core.workflows.get(event.type)
    return definition is not None and definition.event_handler


def _start(core: EngineCore, batch: Batch, received: Received, event: WireEvent) -> None:
    if _starts(core, event):
        core.starts.command(batch, received, event)
    else:  # another process knows the workflow: an older or newer version of the program
        message = f"no workflow named {event.type!r} handles events in this process"
        batch.dead_letter(received, "unknown_workflow", message, event.source, event.id)


def _targeted(core: EngineCore, batch: Batch, received: Received, event: WireEvent) -> None:
    """On the partition of the instance that the event names."""
    if not core.first_seen(batch, received.record.partition, digest(TARGET, event)):
        return
    aimed = aimed_at(event)
    assert aimed is not None
    entry = core.entry(aimed)
    if entry is not None and entry.state.finished is None and entry.state.compensating is None:
        _deliver(core, batch, entry, event)
    elif _instance_named(event) is not None:
        core.stats["unwanted_event"] += 1
    else:
        _correlate(core, batch, received, event)


def _deliver(core: EngineCore, batch: Batch, entry: Entry, event: WireEvent) -> None:
    state, attrs = entry.state, _facts(event)
    ref = first_match(state.waits.items(), event.type, Document(event.data))
    if ref is not None:
        batch.to_entity(state.part, _unwait(state.instance_id, state.run, ref, state.waits[ref]))
    elif core.config.event_ttl_s > 0:
        attrs["until_us"] = batch.now_us + _ttl_us(core.config)
    else:
        core.stats["unwanted_event"] += 1
        return
    core.deliver(batch, entry, h.EVENT_RECEIVED, ref, attrs, event.data)


def _correlate(core: EngineCore, batch: Batch, received: Received, event: WireEvent) -> None:
    part = received.record.partition
    name = entity_of_event(core.config.event_keys, event.type, Document(event.data))
    if name is None and _starts(core, event):
        core.stats["missing_key"] += 1  # it has started something: it is not lost
    elif name is None:
        key = core.config.event_keys[event.type]
        message = f"events of type {event.type!r} are routed by {key!r}, which the data lacks"
        batch.dead_letter(received, "missing_key", message, event.source, event.id)
    elif _offer_bytes(event) > MAX_WRAPPED_BYTES:
        message = f"data and attributes together are more than {MAX_WRAPPED_BYTES:,} bytes: nobody can be offered that"
        batch.dead_letter(received, "too_large", message, event.source, event.id)
    elif core.part_of(name) == part:
        _meet(core, batch, event, name)
    else:
        batch.forward(part, name, _with(event, **{w.X_ROUTE: ENTITY, w.X_REF: name}))


def _meet(core: EngineCore, batch: Batch, event: WireEvent, name: str) -> None:
    """On the partition of the entity."""
    if not core.first_seen(batch, core.part_of(name), digest(ENTITY, event)):
        return
    entity = core.entity(batch, name)
    assert isinstance(entity, EventEntity)
    starts = _starts(core, event)
    found = entity.arrive(batch, _facts(event), event.data, 0 if starts else _ttl_us(core.config))
    if not found and not starts:
        core.stats["unwanted_event"] += 1


def _facts(event: WireEvent) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": event.type, "source": event.source, "id": event.id}
    for name, given in (("subject", event.subject), ("time", event.time), ("extensions", event.extensions)):
        if given:
            facts[name] = given
    return facts


def _offer_bytes(event: WireEvent) -> int:
    """Of the message that offers it to an instance, or less than that where it is small."""
    size_bytes = len(event.data or b"")
    return size_bytes if size_bytes <= MAX_DATA_BYTES // 2 else size_bytes + len(orjson.dumps(_facts(event))) + WRAPPING


def _ttl_us(config: CoreConfig) -> int:
    return round(config.event_ttl_s * 1_000_000)


# -- the entity ------------------------------------------------------------------------------------------------------
class EventEntity(Entity):
    """Members are waits, with the number of the event that they are offered; items are events. A wait is offered one
    event at a time: what it answers ends it. An item that is offered to nobody is in `_kept`."""

    kind = "event"

    def __init__(self, name: str, part: int, config: CoreConfig) -> None:
        super().__init__(name, part, config)
        self._waiting: Waiting[MemberKey] = Waiting()
        self._kept = Kept()
        self._offers: Counter[int] = Counter()
        self._size_bytes = 0

    def load(self, row: EntityRow, members: list[MemberRow], items: list[ItemRow]) -> None:
        super().load(row, members, items)
        for key, member in self.members.items():
            if OFFERED in member.attrs:
                self._offers[member.attrs[OFFERED]] += 1
            else:
                self._waiting.add(key, *_wanted(member))
        for item in self.items.values():
            self._size_bytes += _size_bytes(item)
            if not self._offers[item.seq]:
                self._kept.add(item.seq, item.payload)

    def _introduce(self, type_: str, value_of: Callable[[str], Any]) -> None:
        """The name is a digest; the head says what it stands for."""
        if not self.head:
            key = self.config.event_keys.get(type_)
            shown = None if key is None else str(value_of(key)).removeprefix('"')[:SHOWN_CHARS]
            self.head = {"type": type_} if shown is None else {"type": type_, "key": shown}

    # -- events ----------------------------------------------------------------------------------------------------
    def arrive(self, batch: Batch, attrs: dict[str, Any], payload: bytes | None, ttl_us: int) -> bool:
        """Offers it to all waits that it fits, or keeps it. False: neither."""
        fitting = self._waiting.matching(Document(payload))
        if not fitting and ttl_us <= 0:
            return False
        self._introduce(attrs["type"], Document(payload).value)
        item = self.keep(batch.now_us, batch.now_us + ttl_us, attrs, payload)
        self._size_bytes += _size_bytes(item)
        self._offer_or_keep(batch, item, fitting)
        while len(self.items) > KEPT_EVENTS or self._size_bytes > KEPT_BYTES:
            oldest = self._kept.oldest()
            self._drop(next(iter(self.items)) if oldest is None else oldest)
            batch.stats["dropped_event"] += 1
        return True

    def _offer_or_keep(self, batch: Batch, item: Item, fitting: list[MemberKey]) -> None:
        if not fitting:
            self._kept.add(item.seq, item.payload)
        for member in sorted((self.members[key] for key in fitting), key=lambda each: each.seq):
            self._waiting.remove((member.instance_id, member.ref))
            self._offer(batch, item, member)

    def _offer(self, batch: Batch, item: Item, member: Member) -> None:
        member.attrs[OFFERED] = item.seq
        self.changed_member(member)
        self._offers[item.seq] += 1
        self._kept.remove(item.seq)
        meta = {"seq": item.seq, "event": item.attrs}
        batch.to_instance(
            self.part, Mail(OFFER, member.instance_id, self.name, member.run, member.ref, meta, item.payload)
        )

    def expired(self, batch: Batch, seq: int) -> None:
        """Also of one that is being offered: who accepts it has it already, and for another it is too late."""
        if seq in self._kept:
            batch.stats["expired_event"] += 1
        self._drop(seq)

    def _drop(self, seq: int) -> None:
        item = self.drop_item(seq)
        if item is not None:
            self._kept.remove(seq)
            self._size_bytes -= _size_bytes(item)

    # -- waits -----------------------------------------------------------------------------------------------------
    def told(self, batch: Batch, mail: Mail) -> None:
        if mail.op == WAIT:
            self._wait(batch, mail)
            return
        member = self.members.get((mail.instance_id, mail.ref or ""))
        if member is None or member.run != mail.run:
            return  # a wait that was withdrawn while an event was on its way to it answers all the same
        offered = member.attrs.get(OFFERED)
        if mail.op != UNWAIT and offered != mail.meta["seq"]:
            return
        if mail.op == ACCEPTED:
            self._drop(mail.meta["seq"])
        self._leave(batch, member)

    def _wait(self, batch: Batch, mail: Mail) -> None:
        assert mail.ref is not None
        before = self.members.get((mail.instance_id, mail.ref))
        if before is not None:
            self._leave(batch, before)
        match = mail.meta.get("match", {})
        self._introduce(mail.meta["type"], match.get)
        member = self.join(mail.instance_id, mail.ref, mail.run, {"match": match})
        item = self._oldest(batch, *_wanted(member))
        if item is None:
            self._waiting.add((member.instance_id, member.ref), *_wanted(member))
        else:
            self._offer(batch, item, member)

    def _oldest(self, batch: Batch, paths: Paths, values: Values) -> Item | None:
        while (seq := self._kept.oldest(paths, values)) is not None:
            item = self.items[seq]
            if not _is_over(item, batch.now_us):
                return item
            self.expired(batch, seq)
        return None

    def _leave(self, batch: Batch, member: Member) -> None:
        """A wait is over. What it was offered is offered to others, when nobody has taken it."""
        self.leave(member.instance_id, member.ref)
        self._waiting.remove((member.instance_id, member.ref))
        seq = member.attrs.get(OFFERED)
        if seq is None:
            return
        self._offers[seq] -= 1
        if self._offers[seq]:
            return
        del self._offers[seq]
        item = self.items.get(seq)
        if item is None:
            return
        if _is_over(item, batch.now_us):
            batch.stats["expired_event"] += 1
            self._drop(seq)
        else:
            self._offer_or_keep(batch, item, self._waiting.matching(Document(item.payload)))


def _wanted(member: Member) -> tuple[Paths, Values]:
    return wanted(member.attrs["match"])


def _is_over(item: Item, now_us: int) -> bool:
    return item.expires_us is not None and item.expires_us <= now_us


def _size_bytes(item: Item) -> int:
    return len(item.payload or b"")


# -- the instance's side ---------------------------------------------------------------------------------------------
def _offered(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    """The answer goes out before whatever the code asks for in reaction to the event."""
    is_open = entry is not None and entry.state.run == mail.run and mail.ref in entry.state.waits
    op = ACCEPTED if is_open else REFUSED
    answer = Mail(op, mail.instance_id, mail.to, mail.run, mail.ref, {"seq": mail.meta["seq"]})
    batch.to_entity(core.part_of(mail.to), answer)
    if is_open:
        assert entry is not None
        core.deliver(batch, entry, h.EVENT_RECEIVED, mail.ref, mail.meta["event"], mail.payload)
    else:
        core.stats["refused_event"] += 1


def _wait_started(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    state = entry.state
    meta: dict[str, Any] = {name: event.attrs[name] for name in ("type", "match") if name in event.attrs}
    batch.to_entity(state.part, Mail(WAIT, event.attrs["entity"], state.instance_id, state.run, event.ref, meta))


def _wait_cancelled(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    assert event.ref is not None
    state = entry.state
    batch.to_entity(state.part, _unwait(state.instance_id, state.run, event.ref, event.attrs))


def _let_go(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    state = entry.state
    for ref, attrs in state.waits.items():
        batch.to_entity(state.part, _unwait(state.instance_id, state.run, ref, attrs))


def _unwait(instance_id: str, run: int, ref: str, attrs: dict[str, Any]) -> Mail:
    return Mail(UNWAIT, attrs["entity"], instance_id, run, ref)


TELL = {h.WAIT_STARTED: _wait_started, h.WAIT_CANCELLED: _wait_cancelled}
OPS = {OFFER: _offered}
ENTITIES = {EventEntity.kind: EventEntity}
LET_GO = (_let_go,)
