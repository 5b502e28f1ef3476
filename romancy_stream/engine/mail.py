"""Messages from partition to partition: between instances, and between instances and entities. They travel over
`results`, which outsiders cannot write, with the origin and position of the outbox row that they are; so each counts
once, and those of one partition come in the order in which they were decided. Values only.

The data of such a message is `{"meta": {...}, "data": payload}`. The payload is cut out by the length of what stands
before it, never parsed and written again: what a user sent arrives as it was sent, digit by digit.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Final

import orjson

from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.value import value

_HEAD: Final = b'{"meta":'
_MIDDLE: Final = b',"data":'


@value
class Mail:
    """`to` is an instance or an entity, `op` what it is to do. `instance_id` and `run`: of the instance that sends, or
    for one to an instance: `run` is that of the addressee it is meant for, 0 for whichever it is in. `ref` names the
    wait, subscription, child ... in the instance's history."""

    op: str
    to: str
    instance_id: str
    run: int
    ref: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    payload: bytes | None = None


def written(mail: Mail, type_: str, id_: str, source: str, time: str) -> WireEvent:
    meta = orjson.dumps(mail.meta)
    extensions = {
        w.X_PARTITION_KEY: mail.to,
        w.X_OP: mail.op,
        w.X_INSTANCE: mail.instance_id,
        w.X_RUN: str(mail.run),
        w.X_META: str(len(meta)),
    }
    if mail.ref is not None:
        extensions[w.X_REF] = mail.ref
    data = _HEAD + meta + _MIDDLE + (mail.payload if mail.payload is not None else b"null") + b"}"
    return WireEvent(id_, source, type_, mail.to, data, time, extensions)


def read(event: WireEvent) -> Mail:
    """Of an event that `written` made. A payload of None comes back as `null`."""
    extensions, data = event.extensions, event.data
    assert event.subject is not None
    assert data is not None
    begin = len(_HEAD)
    end = begin + int(extensions[w.X_META])
    return Mail(
        extensions[w.X_OP],
        event.subject,
        extensions[w.X_INSTANCE],
        int(extensions[w.X_RUN]),
        extensions.get(w.X_REF),
        orjson.loads(data[begin:end]),
        data[end + len(_MIDDLE) : -1],
    )
