"""Hypothesis strategies for events and their parts. No assertions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import orjson
from hypothesis import strategies as st

from romancy_stream.wire.codec import new_event_time
from romancy_stream.wire.event import WireEvent

NAMED: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data", "dataschema"}
)

characters = st.characters(codec="utf-8", exclude_characters="\0")
texts = st.text(characters, max_size=20)
printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)
extension_names = st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True).filter(lambda name: name not in NAMED)
extensions = st.dictionaries(extension_names, texts, max_size=4)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=zones)


def _event(
    id: str, source: str, type: str, subject: str | None, data: bytes | None, time: datetime, extensions: dict[str, str]
) -> WireEvent:
    since = (time.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return WireEvent(id, source, type, subject, data, new_event_time(since), extensions)


def _small(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits
        return False
    return True


events = st.builds(
    _event,
    printable,
    printable,
    printable,
    st.none() | printable,
    st.none() | json_values.filter(_small).map(orjson.dumps),
    times,
    extensions,
)
