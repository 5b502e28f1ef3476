"""Channels and groups: who listens, and what is kept until it is taken. Part of the core.

A channel is an entity on the partition of its name. What it does with a message is its mode, which its first
subscriber fixes for good:

broadcast  The message goes to each subscriber at once, and nothing is kept.
competing  The message is kept. An instance that waits in `receive` says so (a *demand*); the oldest message is
           offered to the oldest demand. The instance accepts, in the commit that records the message, or refuses, when
           that receive is over; then the message is offered again, before the others.
direct     The channel only knows its mode. Messages go straight to the instance.

Before it has a mode, a channel keeps what is published: the first subscriber may be a competing one. All mail between
an instance and a channel comes in order, so a subscription needs no number: what comes in between `joined` and
`unsubscribe` is for it, and everything else is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from romancy_stream.engine import history as h
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.commit import EntityRow, ItemRow, MemberRow
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.entity import Entity, Item, Member, MemberKey
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Received
from romancy_stream.engine.intake import digest
from romancy_stream.engine.loop import LATEST_US
from romancy_stream.engine.mail import Mail
from romancy_stream.engine.messages import (
    BROADCAST,
    COMPETING,
    DIRECT,
    Message,
    channel_entity,
    checked_channel,
    checked_metadata,
    group_entity,
)
from romancy_stream.engine.outgoing import short_id
from romancy_stream.errors import ChannelFullError, ChannelModeConflictError, PayloadError
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import encode, parse_time
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import Record

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

KEPT_MESSAGES: Final = 10_000
"""By a channel, for nobody yet. It is read as a whole when its partition changes hands. More become dead letters."""
KEPT_BYTES: Final = 32 * 2**20
MEMBERS: Final = 10_000
"""Of a channel or a group: a message to all of them is one batch."""

_SUBSCRIPTION: Final = "sub"
_MEMBERSHIP: Final = "member"


# -- entities --------------------------------------------------------------------------------------------------------
class Channel(Entity):
    """Members are subscribers (ref _SUBSCRIPTION) and demands (ref: the receive). Items are messages that nobody has
    accepted; `offered` in their attrs is the demand [instance_id, ref] that an answer is due from."""

    kind = "channel"

    def __init__(self, name: str, part: int, config: CoreConfig) -> None:
        super().__init__(name, part, config)
        self.head["name"] = name.partition(":")[2]
        self._subscribers: dict[str, Member] = {}
        self._demands: dict[MemberKey, Member] = {}
        self._kept_bytes = 0

    def load(self, row: EntityRow, members: list[MemberRow], items: list[ItemRow]) -> None:
        super().load(row, members, items)
        self.lasting = "mode" in self.head
        for key, member in self.members.items():
            self._index(key, member)
        self._kept_bytes = sum(len(item.payload or b"") for item in self.items.values())

    def _index(self, key: MemberKey, member: Member) -> None:
        if key[1] == _SUBSCRIPTION:
            self._subscribers[key[0]] = member
        else:
            self._demands[key] = member

    def told(self, batch: Batch, mail: Mail) -> None:
        _CHANNEL_OPS[mail.op](self, batch, mail)

    def _tell(self, batch: Batch, op: str, mail: Mail, meta: dict[str, Any]) -> None:
        """In answer to a mail."""
        answer = Mail(
            op, mail.instance_id, mail.instance_id, mail.run, mail.ref, {"channel": self.head["name"], **meta}
        )
        batch.to_instance(self.part, answer)

    # -- subscribing ---------------------------------------------------------------------------------------------
    def subscribe(self, batch: Batch, mail: Mail) -> None:
        mode, agreed = mail.meta["mode"], self.head.get("mode", mail.meta["mode"])
        known = mail.instance_id in self._subscribers
        if mode != agreed:
            message = f"channel {self.head['name']!r} is {agreed}, not {mode}: its first subscriber decided"
            self._refuse(batch, mail, ChannelModeConflictError.code, message)
        elif mode != DIRECT and not known and len(self._subscribers) >= MEMBERS:
            message = f"channel {self.head['name']!r} has {MEMBERS:,} subscribers, which is the limit"
            self._refuse(batch, mail, ChannelFullError.code, message)
        else:
            if not self.lasting:
                self._fix(batch, mode)
            if mode != DIRECT and not known:
                self._subscribers[mail.instance_id] = self.join(mail.instance_id, _SUBSCRIPTION, mail.run, {})
            if mail.ref is not None:
                self._tell(batch, "channel_joined", mail, {"mode": mode})

    def _refuse(self, batch: Batch, mail: Mail, code: str, message: str) -> None:
        self._tell(batch, "channel_refused", mail, {"mode": mail.meta["mode"], "code": code, "message": message})

    def _fix(self, batch: Batch, mode: str) -> None:
        self.head["mode"] = mode
        self.lasting = True
        if mode != COMPETING:  # what was published before is for none of those who come now
            batch.stats["message_without_subscriber"] += len(self.items)
            for seq in list(self.items):
                self.drop_item(seq)

    def unsubscribe(self, batch: Batch, mail: Mail) -> None:
        self._subscribers.pop(mail.instance_id, None)
        self.leave(mail.instance_id, _SUBSCRIPTION)
        for key in [key for key in self._demands if key[0] == mail.instance_id]:
            self._forget(key)

    # -- messages ------------------------------------------------------------------------------------------------
    def publish(self, batch: Batch, message: Message) -> tuple[str, str] | None:
        """Returns why it cannot be: (reason, message)."""
        mode = self.head.get("mode")
        if mode == DIRECT:
            return "wrong_mode", f"channel {self.head['name']!r} is direct: its messages are sent to an instance"
        if mode == BROADCAST:
            self._spread(batch, message)
            return None
        self._drop_expired(batch)
        if len(self.items) >= KEPT_MESSAGES or self._kept_bytes + len(message.payload) > KEPT_BYTES:
            limit = f"{KEPT_MESSAGES:,} messages or {KEPT_BYTES // 2**20} MiB"
            return "channel_full", f"channel {self.head['name']!r} keeps {limit} that nobody takes, which is the limit"
        expires_us = batch.now_us + round(self.config.channel_retention_s * 1_000_000)
        self.keep(batch.now_us, expires_us, message.attrs(), message.payload)
        self._kept_bytes += len(message.payload)
        self._offer(batch)
        return None

    def published(self, batch: Batch, mail: Mail) -> None:
        message = Message.of(mail.meta, mail.payload)
        refused = self.publish(batch, message)
        if refused is not None:
            _dead_letter(batch, message, *refused)

    def _spread(self, batch: Batch, message: Message) -> None:
        if not self._subscribers:
            batch.stats["message_without_subscriber"] += 1
        meta = {**message.attrs(), "broadcast": True}
        for instance_id in self._subscribers:
            batch.to_instance(self.part, Mail("message", instance_id, instance_id, 0, None, meta, message.payload))

    # -- competing -----------------------------------------------------------------------------------------------
    def receive(self, batch: Batch, mail: Mail) -> None:
        assert mail.ref is not None
        self._demands[mail.instance_id, mail.ref] = self.join(mail.instance_id, mail.ref, mail.run, {})
        self._drop_expired(batch)
        self._offer(batch)

    def unreceive(self, batch: Batch, mail: Mail) -> None:
        """It may be gone: an offer is on its way then, and will be refused."""
        assert mail.ref is not None
        demand = self._demands.get((mail.instance_id, mail.ref))
        if demand is not None and demand.run == mail.run:
            self._forget((mail.instance_id, mail.ref))

    def accepted(self, batch: Batch, mail: Mail) -> None:
        self.drop_item(mail.meta["seq"])

    def refused(self, batch: Batch, mail: Mail) -> None:
        item = self.items.get(mail.meta["seq"])
        if item is not None:
            item.attrs.pop("offered", None)
            self.changed_item(item)
            self._drop_expired(batch)
            self._offer(batch)

    def _offer(self, batch: Batch) -> None:
        for item in self.items.values():
            if not self._demands:
                return
            if "offered" not in item.attrs:
                (instance_id, ref), demand = next(iter(self._demands.items()))
                meta = {**item.attrs, "seq": item.seq}
                mail = Mail("offer", instance_id, instance_id, demand.run, ref, meta, item.payload)
                batch.to_instance(self.part, mail)
                self._forget((instance_id, ref))
                item.attrs["offered"] = [instance_id, ref]
                self.changed_item(item)

    def _forget(self, key: MemberKey) -> None:
        self._demands.pop(key, None)
        self.leave(*key)

    def _drop_expired(self, batch: Batch) -> None:
        """The first ones. Who collects them all comes by less often than messages do."""
        expired = []
        for seq, item in self.items.items():
            if item.expires_us is None or item.expires_us > batch.now_us:
                break
            expired.append(seq)
        for seq in expired:
            self.expired(batch, seq)

    def expired(self, batch: Batch, seq: int) -> None:
        """Also when it is offered: an instance may accept it still, and if not, its time is over."""
        if self.drop_item(seq) is not None:
            batch.stats["message_expired"] += 1

    def drop_item(self, seq: int) -> Item | None:
        item = super().drop_item(seq)
        if item is not None:
            self._kept_bytes -= len(item.payload or b"")
        return item


_CHANNEL_OPS: Final = {
    "subscribe": Channel.subscribe,
    "unsubscribe": Channel.unsubscribe,
    "publish": Channel.published,
    "receive": Channel.receive,
    "unreceive": Channel.unreceive,
    "accepted": Channel.accepted,
    "refused": Channel.refused,
}


class Group(Entity):
    """Members are instances."""

    kind = "group"

    def told(self, batch: Batch, mail: Mail) -> None:
        if mail.op == "join":
            self._join(batch, mail)
        elif mail.op == "leave":
            self.leave(mail.instance_id, _MEMBERSHIP)
        else:
            assert mail.op == "send", mail.op
            self._send(batch, mail)

    def _join(self, batch: Batch, mail: Mail) -> None:
        group = self.name.partition(":")[2]
        op, meta = "group_joined", {"group": group}
        if (mail.instance_id, _MEMBERSHIP) not in self.members:
            if len(self.members) < MEMBERS:
                self.join(mail.instance_id, _MEMBERSHIP, mail.run, {})
            else:
                message = f"group {group!r} has {MEMBERS:,} members, which is the limit"
                op, meta = "group_refused", {"group": group, "code": ChannelFullError.code, "message": message}
        if mail.ref is not None:
            batch.to_instance(self.part, Mail(op, mail.instance_id, mail.instance_id, mail.run, mail.ref, meta))

    def _send(self, batch: Batch, mail: Mail) -> None:
        if not self.members:
            batch.stats["message_without_subscriber"] += 1
        for instance_id, _ in self.members:
            batch.to_instance(self.part, Mail("message", instance_id, instance_id, 0, None, mail.meta, mail.payload))


ENTITIES: Final = {"channel": Channel, "group": Group}


# -- from the history of an instance ---------------------------------------------------------------------------------
def _mail(batch: Batch, entry: Entry, op: str, to: str, ref: str | None, meta: dict[str, Any] | None = None) -> None:
    state = entry.state
    batch.to_entity(state.part, Mail(op, to, state.instance_id, state.run, ref, meta or {}))


def _subscribed(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    channel, mode = event.attrs["channel"], event.attrs["mode"]
    _mail(batch, entry, "subscribe", channel_entity(channel), event.ref, {"mode": mode})


def _unsubscribed(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    _unsubscribe(batch, entry, event.attrs["channel"], event.attrs["mode"])


def _unsubscribe(batch: Batch, entry: Entry, channel: str, mode: str) -> None:
    if mode != DIRECT:
        _mail(batch, entry, "unsubscribe", channel_entity(channel), None)


def _group_joining(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    _mail(batch, entry, "join", group_entity(event.attrs["group"]), event.ref)


def _group_left(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    _mail(batch, entry, "leave", group_entity(event.attrs["group"]), None)


def _receive_started(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    assert event.ref is not None
    _demand(batch, entry, "receive", event.ref, event.attrs["channel"])


def _receive_cancelled(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    assert event.ref is not None
    _demand(batch, entry, "unreceive", event.ref, event.attrs["channel"])


def _demand(batch: Batch, entry: Entry, op: str, ref: str, channel: str) -> None:
    if entry.state.subscriptions.get(channel) == COMPETING:
        _mail(batch, entry, op, channel_entity(channel), ref)


def _sent(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    state, attrs = entry.state, event.attrs
    id_ = short_id(f"{state.instance_id}/{state.run}/{event.ref}")
    payload = event.payload or b"null"
    message = Message(attrs["channel"], id_, state.instance_id, attrs.get("metadata"), event.at_us, payload)
    meta = message.attrs()
    if "to" in attrs:
        batch.to_instance(state.part, Mail("message", attrs["to"], state.instance_id, 0, None, meta, payload))
    elif "group" in attrs:
        to = group_entity(attrs["group"])
        batch.to_entity(state.part, Mail("send", to, state.instance_id, state.run, None, meta, payload))
    else:
        to = channel_entity(attrs["channel"])
        batch.to_entity(state.part, Mail("publish", to, state.instance_id, state.run, None, meta, payload))


TELL: Final = {
    h.CHANNEL_SUBSCRIBED: _subscribed,
    h.CHANNEL_UNSUBSCRIBED: _unsubscribed,
    h.GROUP_JOINING: _group_joining,
    h.GROUP_LEFT: _group_left,
    h.RECEIVE_STARTED: _receive_started,
    h.RECEIVE_CANCELLED: _receive_cancelled,
    h.MESSAGE_SENT: _sent,
}


def _let_go(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    """Subscriptions and memberships live on in the next run; what is only asked for, and open receives, do not."""
    state = entry.state
    for attrs in state.joining.values():
        if "group" in attrs:
            _mail(batch, entry, "leave", group_entity(attrs["group"]), None)
        else:
            _unsubscribe(batch, entry, attrs["channel"], attrs["mode"])
    if event.kind == h.WORKFLOW_RECURRED:
        for ref, attrs in state.receives.items():
            _demand(batch, entry, "unreceive", ref, attrs["channel"])
        return
    for channel, mode in state.subscriptions.items():
        _unsubscribe(batch, entry, channel, mode)
    for group in sorted(state.groups):
        _mail(batch, entry, "leave", group_entity(group), None)


LET_GO: Final = [_let_go]


def rejoin(batch: Batch, entry: Entry) -> None:
    """For a run that goes on from the history of another, which has let go of everything: joins again what its state
    says it is in. What it waits for it must ask for again, as any run does."""
    state = entry.state
    for channel, mode in state.subscriptions.items():
        _mail(batch, entry, "subscribe", channel_entity(channel), None, {"mode": mode})
    for group in sorted(state.groups):
        _mail(batch, entry, "join", group_entity(group), None)


# -- mail to an instance ---------------------------------------------------------------------------------------------
def _is_open(entry: Entry | None) -> bool:
    return entry is not None and entry.state.finished is None and entry.state.compensating is None


def _answer(kind: str) -> Any:
    def deliver(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
        """What became of a subscription or a membership."""
        if entry is None or not _is_open(entry) or entry.state.run != mail.run or mail.ref not in entry.state.joining:
            core.stats["late_answer"] += 1
        else:
            core.deliver(batch, entry, kind, mail.ref, mail.meta, None)

    return deliver


def _message(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    meta = dict(mail.meta)
    broadcast = meta.pop("broadcast", False)
    if entry is None or not _is_open(entry):
        core.stats["message_for_nobody"] += 1
    elif broadcast and meta["channel"] not in entry.state.subscriptions:
        core.stats["late_message"] += 1
    else:
        _arrived(core, batch, entry, Message.of(meta, mail.payload))


def _arrived(core: EngineCore, batch: Batch, entry: Entry, message: Message) -> None:
    receives = entry.state.receives
    ref = next((ref for ref, attrs in receives.items() if attrs["channel"] == message.channel), None)
    if ref is not None:
        _demand(batch, entry, "unreceive", ref, message.channel)
    core.deliver(batch, entry, h.MESSAGE_RECEIVED, ref, message.attrs(), message.payload)


def _offered(core: EngineCore, batch: Batch, entry: Entry | None, mail: Mail) -> None:
    seq, to = mail.meta["seq"], channel_entity(mail.meta["channel"])
    wanted = entry is not None and _is_open(entry) and entry.state.run == mail.run and mail.ref in entry.state.receives
    op = "accepted" if wanted else "refused"
    answer = Mail(op, to, mail.to, mail.run, mail.ref, {"seq": seq})
    batch.to_entity(core.part_of(mail.to), answer)
    if wanted:
        assert entry is not None
        message = Message.of(mail.meta, mail.payload)
        core.deliver(batch, entry, h.MESSAGE_RECEIVED, mail.ref, message.attrs(), message.payload)
    else:
        core.stats["offer_refused"] += 1


OPS: Final = {
    "channel_joined": _answer(h.CHANNEL_JOINED),
    "channel_refused": _answer(h.CHANNEL_REFUSED),
    "group_joined": _answer(h.GROUP_JOINED),
    "group_refused": _answer(h.GROUP_REFUSED),
    "message": _message,
    "offer": _offered,
}


# -- from outside ----------------------------------------------------------------------------------------------------
def aimed_at(event: WireEvent) -> str | None:
    """The instance that a message from outside is sent to; None: to all of its channel."""
    return event.extensions.get(w.X_INSTANCE) or event.subject


def entities_of(event: WireEvent) -> Iterable[str]:
    """The channel that a message from outside goes to."""
    channel = event.extensions.get(w.X_CHANNEL)
    if event.type != w.CHANNEL_PUBLISH or not channel or aimed_at(event) is not None:
        return ()
    try:
        return (channel_entity(checked_channel(channel)),)
    except ValueError:
        return ()


def targets_of(event: WireEvent) -> Iterable[str]:
    """The instance that must be known before a message from outside is dealt with."""
    to = aimed_at(event)
    return () if to is None else (to,)


def outside(core: EngineCore, batch: Batch, received: Received, event: WireEvent) -> None:
    problem: tuple[str, str] | None = None
    try:
        if w.X_CHANNEL not in event.extensions:
            problem = "missing_attribute", f"{w.CHANNEL_PUBLISH} needs the attribute {w.X_CHANNEL}"
        else:
            checked_channel(event.extensions[w.X_CHANNEL])
            checked_metadata(event.extensions.get(w.X_METADATA, "{}"))
    except (ValueError, PayloadError) as error:
        problem = "bad_attribute", str(error)
    if problem is not None:
        batch.dead_letter(received, *problem, event.source, event.id)
        return
    part, to = received.record.partition, aimed_at(event)
    key = to or channel_entity(event.extensions[w.X_CHANNEL])
    if core.part_of(key) != part:
        batch.forward(part, key, event)
    elif core.first_seen(batch, part, digest("channel", event)):
        problem = _taken(core, batch, event, to)
        if problem is not None:
            del batch.intake[part, digest("channel", event)]  # it was not taken, and may come again
            batch.dead_letter(received, *problem, event.source, event.id)


def _taken(core: EngineCore, batch: Batch, event: WireEvent, to: str | None) -> tuple[str, str] | None:
    """Returns why not: (reason, message)."""
    try:
        core.opened(event.data)
        payload = core.sealed(batch, event.data or b"null", f"message {event.id}")
    except PayloadError as error:
        return "unreadable_message", str(error)
    message = _of_event(event, payload, batch.now_us)
    if to is None:
        channel = core.entity(batch, channel_entity(message.channel))
        assert isinstance(channel, Channel)
        return channel.publish(batch, message)
    entry = core.entry(to)
    if entry is None or not _is_open(entry):
        return "unknown_instance", f"no instance {to!r} is there, or it has ended"
    _arrived(core, batch, entry, message)
    return None


def _of_event(event: WireEvent, payload: bytes, now_us: int) -> Message:
    time = None if event.time is None else parse_time(event.time)
    sent_us = now_us if time is None else round(time.timestamp() * 1_000_000)
    if not 0 <= sent_us <= LATEST_US:
        sent_us = now_us  # nobody sent it then
    extensions = event.extensions
    return Message(
        extensions[w.X_CHANNEL], event.id, extensions.get(w.X_SENDER), extensions.get(w.X_METADATA), sent_us, payload
    )


def _dead_letter(batch: Batch, message: Message, reason: str, text: str) -> None:
    """Of a message that an instance has sent: kept as the event from outside that it could have been, so that it can
    be sent again."""
    assert batch.received is not None
    record = batch.received.record
    extensions = {w.X_CHANNEL: message.channel, w.X_PARTITION_KEY: channel_entity(message.channel)}
    for name, value in ((w.X_SENDER, message.sender), (w.X_METADATA, message.metadata)):
        if value is not None:
            extensions[name] = value
    event = WireEvent(message.id, batch.source, w.CHANNEL_PUBLISH, None, message.payload, batch.time, extensions)
    headers, raw = encode(event)
    key = channel_entity(message.channel).encode()
    kept = Record(record.topic, record.partition, record.offset, key, raw, headers, record.timestamp_ms)
    batch.dead_letter(Received(kept, event), reason, text, event.source, event.id)
