"""What users declare of events, and what they get of them."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from romancy_stream import App, ConfigurationError, EventType, PayloadError, ReceivedEvent, Registry
from romancy_stream.events import received

ATTRS = {"type": "paid", "source": "/bank", "id": "e1"}


def test_a_type_of_events_is_declared_once() -> None:
    app = App("events")
    declared = app.event("paid", key="order.id", model=dict[str, int])
    assert declared == EventType("paid", "order.id", dict[str, int])
    assert app.event("paid", key="order.id", model=dict[str, int]) == declared
    assert app.registry.events == {"paid": declared}
    others: list[EventType[Any]] = [EventType("paid"), EventType("paid", "order"), EventType("paid", "order.id")]
    for other in others:
        with pytest.raises(ConfigurationError, match=r"'order\.id'"):
            app.registry.add_event(other)


@pytest.mark.parametrize("wrong", [("", None), ("romancy.x", None), ("t" * 256, None), ("t", ""), ("t", "a..b")])
def test_a_wrong_declaration_is_a_value_error(wrong: tuple[str, str | None]) -> None:
    with pytest.raises(ValueError, match=r"type|field"):
        App("events").event(wrong[0], key=wrong[1])


def test_declarations_come_with_modules_and_registries() -> None:
    library, module, app = Registry(), ModuleType("shop"), App("events")
    library.add_event(EventType("paid", "order"))
    module.shipped = EventType("shipped")  # type: ignore[attr-defined]
    app.include(library)
    app.include(module)
    assert [each.key for each in app.registry.events.values()] == ["order", None]
    clashing = Registry()
    clashing.add_event(EventType("paid", "invoice"))
    with pytest.raises(ConfigurationError, match="invoice"):
        app.include(clashing)


def test_a_model_without_a_json_form_is_refused_at_startup() -> None:
    class Opaque:
        pass

    app = App("events")
    app.event("paid", model=Opaque)
    with pytest.raises(ConfigurationError, match="'paid'"):
        app.registry.resolve()


@pytest.mark.parametrize("name", ["event_ttl", "dedup_window"])
def test_times_to_keep_are_seconds_or_a_timedelta(name: str) -> None:
    for good in (1, 2.5, timedelta(days=3)):
        assert App("events", **{name: good}).namespace == "events"  # type: ignore[arg-type]
    bad: list[Any] = [-1, float("nan"), float("inf"), timedelta(days=-1), 10**12, "1h", None]
    for wrong in bad:
        with pytest.raises(ConfigurationError, match=name):
            App("events", **{name: wrong})
    assert App("events", event_ttl=0).node_config().event_ttl_s == 0
    with pytest.raises(ConfigurationError, match="dedup_window"):
        App("events", dedup_window=0)


def test_a_received_event_is_a_value() -> None:
    attrs = {**ATTRS, "subject": "o1", "time": "2026-01-31T12:00:00.123456789+02:00", "extensions": {"mine": "x"}}
    event = received(attrs, b'{"n":12345678901234567890123}', None)
    when = datetime(2026, 1, 31, 10, 0, 0, 123456, tzinfo=UTC)
    assert event == ReceivedEvent({"n": 12345678901234567890123}, "paid", "/bank", "e1", "o1", when, {"mine": "x"})
    assert event.time is not None
    assert event.time.utcoffset() == timedelta(hours=2)
    assert received(ATTRS, None, None) == ReceivedEvent(None, "paid", "/bank", "e1")
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(FrozenInstanceError):
        event.type = "other"  # type: ignore[misc]


def test_data_that_does_not_fit_is_a_payload_error() -> None:
    assert received(ATTRS, b"[1]", list[int]).data == [1]
    assert received(ATTRS, None, int | None).data is None
    for raw in (b'{"a":1}', b'["x"]', None):
        with pytest.raises(PayloadError, match="data of event 'paid'") as error:
            received(ATTRS, raw, list[int])
        assert error.value.errors
