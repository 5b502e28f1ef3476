"""What the world outside hears of an instance, where no other module has more to say about it. Part of the core."""

from __future__ import annotations

from romancy_stream.engine import history as h
from romancy_stream.engine import outgoing
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.history import HistoryEvent


def published(batch: Batch, entry: Entry, event: HistoryEvent) -> None:
    state = entry.state
    message = outgoing.published(batch.source, state, event, batch.time)
    batch.send(state.part, event.attrs.get("topic", batch.topics.events), state.instance_id, message)


TELL = {h.EVENT_PUBLISHED: published}
