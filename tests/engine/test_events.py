"""Events that find who waits for them: live, after a crash before each step, over many partitions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from romancy_stream.context import WorkflowContext
from romancy_stream.engine import correlation
from romancy_stream.engine.inputs import ItemExpired
from romancy_stream.errors import EventTimeoutError
from romancy_stream.wire import event as w
from romancy_stream.wire.malformed import MAX_DATA_BYTES
from romancy_stream.wire.record import Record
from romancy_stream.workflow import workflow
from tests.engine.events_kit import KEYED, Make, anything, event, nothing_left, order, patient, settle, sleeper, worlds
from tests.engine.world import START_US, World

HOUR_US = 3_600_000_000


# -- correlated ------------------------------------------------------------------------------------------------------
@worlds
@pytest.mark.parametrize("config", [{}, KEYED])
def test_an_event_finds_who_waits_for_it(make: Make, config: Any) -> None:
    world = make(order, **config)
    for number in ("o1", "o2"):
        world.start("order", number, number)
    settle(world)
    assert {row.status for row in world.instances.values()} == {"waiting_for_event"}
    assert world.instances["o1"].waiting_for == b'["event paid"]'
    world.send(event("e1", {"order": "o1", "amount": 5}))
    world.send(event("e2", {"order": "o3", "amount": 7}))
    settle(world)
    assert world.output("o1") == 5
    assert world.instances["o2"].status == "waiting_for_event"
    world.send(event("e3", {"order": "o2", "amount": 6}))
    world.run()
    assert world.output("o2") == 6
    assert world.kinds("o2") == [
        "workflow.started",
        "wait.started wait:1",
        "timer.started timer:1",
        "event.received wait:1",
        "timer.cancelled timer:1",
        "workflow.completed",
    ]
    [left] = world.items.values()  # nobody has wanted o3 yet
    assert orjson.loads(left.attrs)["id"] == "e2"
    assert not world.members
    assert not world.dead_letters


@worlds
def test_a_waiter_gets_all_of_the_event(make: Make) -> None:
    world = make(anything)
    world.start("anything")
    settle(world)
    world.send(event("e1", [1.10], "somebody", mine="x", traceparent="00-1"), part=0)
    world.run()
    got = ["paid", "/bank", "e1", "somebody", "2026-01-01 00:00:00+00:00", {"mine": "x", "traceparent": "00-1"}, [1.1]]
    assert world.output() == got
    [received] = [each for each in world.history["i"] if each.kind == "event.received"]
    assert received.payload == b"[1.1]"
    nothing_left(world)


@worlds
@pytest.mark.parametrize("config", [{}, KEYED])
def test_an_event_before_its_wait_is_kept_for_it(make: Make, config: Any) -> None:
    world = make(order, **config)
    for number in (1, 2):
        world.send(event(f"e{number}", {"order": "o1", "amount": number}))
    settle(world)
    assert len(world.items) == 2
    for instance in ("i1", "i2"):  # the oldest event goes to the first wait
        world.start("order", "o1", instance)
        settle(world)
    assert [world.output("i1"), world.output("i2")] == [1, 2]
    nothing_left(world)


@worlds
def test_two_waiters_get_an_event_once_each_and_a_later_one_does_not(make: Make) -> None:
    world = make(order)
    for instance in ("i1", "i2"):
        world.start("order", "o1", instance)
    settle(world)
    world.send(event("e1", {"order": "o1", "amount": 5}))
    settle(world)
    world.start("order", "o1", "i3")
    settle(world)
    assert [world.output("i1"), world.output("i2")] == [5, 5]
    for instance in ("i1", "i2"):
        assert [each.kind for each in world.history[instance]].count("event.received") == 1
    assert world.instances["i3"].status == "waiting_for_event"
    assert not world.items
    world.run()
    assert world.error("i3")["type"].endswith("EventTimeoutError")
    nothing_left(world)


@worlds
def test_redelivery_changes_nothing_whatever_way_it_comes(make: Make) -> None:
    world = make(order, anything)
    parts = range(world.config.partitions)

    def deliver() -> None:
        for part in parts:
            world.send(event("e1", {"order": "o1", "amount": 5}), part)
            world.send(event("e2", {"order": "o9"}, "target"), part)
        settle(world)

    world.start("order", "o1", "i1")
    world.start("anything", None, "target")
    settle(world)
    deliver()
    assert world.output("i1") == 5
    assert world.output("target")[2] == "e2"
    world.start("order", "o1", "i2")
    world.start("order", "o9", "i3")
    settle(world)
    deliver()
    for instance in ("i2", "i3"):
        assert world.instances[instance].status == "waiting_for_event"
    assert not world.items


@worlds
def test_an_event_after_the_timeout_is_for_the_next_wait(make: Make) -> None:
    world = make(patient)
    world.start("patient", "o1")
    world.run(until_us=START_US + 25_000_000)
    world.send(event("e1", {"order": "o1"}))
    world.run()
    assert world.output() == [2, "e1"]
    assert world.kinds()[:7] == [
        "workflow.started",
        "wait.started wait:1",
        "timer.started timer:1",
        "timer.fired timer:1",
        "wait.cancelled wait:1",
        "wait.started wait:2",
        "timer.started timer:2",
    ]
    nothing_left(world)


def offer_on_its_way(world: World) -> list[Record]:
    """Steps until a wait is offered an event, and holds the offer back."""
    while not any((w.X_OP, "event") in _marks(row) for row in world.outbox):
        world.step()
    held, world.pending = world.pending, []
    return held


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("recurring", [False, True])
def test_an_event_that_a_wait_was_offered_too_late_is_offered_again(restarts: bool, recurring: bool) -> None:
    """Also to the wait of the same name that another run has."""

    @workflow
    async def again(ctx: WorkflowContext, number: str) -> Any:
        try:
            paid = await ctx.wait_event("paid", match={"order": number}, timeout=10)
        except EventTimeoutError:
            await ctx.recur(number)
        return [ctx.run - 1, paid.id]

    world = World(again if recurring else patient, partitions=5)
    world.start("again" if recurring else "patient", "o1")
    settle(world)
    world.send(event("e1", {"order": "o1"}))
    held = offer_on_its_way(world)
    world.now_us = START_US + 11_000_000
    if restarts:
        world.restart()
    world.step()  # the wait is withdrawn, the next one begins
    world.pending = held + world.pending
    world.run(restarts=restarts)
    assert world.output() == [1, "e1"]
    assert [each.kind for each in world.history["i"]].count("event.received") == 1
    assert world.core.stats["refused_event"] == 1 or restarts
    nothing_left(world)


@pytest.mark.parametrize("restarts", [False, True])
def test_an_event_that_nobody_has_taken_goes_to_who_came_meanwhile(restarts: bool) -> None:
    world = World(order, patient, partitions=5)
    world.start("patient", "o1", "first")
    settle(world)
    world.send(event("e1", {"order": "o1", "amount": 5}))
    held = offer_on_its_way(world)
    world.start("order", "o1", "second")
    settle(world)
    assert world.instances["second"].status == "waiting_for_event"
    world.now_us = START_US + 11_000_000
    world.step()
    world.pending = held + world.pending
    world.run(until_us=START_US + 30_000_000, restarts=restarts)
    assert world.output("second") == 5
    assert world.instances["first"].status == "waiting_for_event"
    assert not world.items


def _marks(row: Any) -> set[tuple[str, str]]:
    return {(name.removeprefix("ce_"), text) for name, text in row.headers}


def test_message_claimed_but_lost_between_claim_and_history() -> None:
    """The history of the waiter and its answer to the entity are one commit: whichever step a crash comes before, an
    event is in the history, or still to be had."""
    for crash_before in range(12):
        world = World(order, partitions=5)
        world.start("order", "o1")
        settle(world)
        world.send(event("e1", {"order": "o1", "amount": 5}))
        for step in range(12):
            if step == crash_before:
                world.restart()
            received = any(each.kind == "event.received" for each in world.history["i"])
            answered = any((w.X_OP, "accepted") in _marks(row) for row in world.outbox)
            assert received == answered
            assert received or world.items or world.pending
            world.step()
        assert world.output() == 5
        nothing_left(world)


@worlds
def test_a_wait_in_a_loop_gets_every_event_in_order(make: Make) -> None:
    @workflow
    async def collector(ctx: WorkflowContext, count: int) -> list[str]:
        return [(await ctx.wait_event("paid")).id for _ in range(count)]

    world = make(collector)
    world.start("collector", 30)
    sent = [f"e{number}" for number in range(30)]
    for number, id_ in enumerate(sent):
        world.send(event(id_))
        if number % 7 == 0:
            settle(world)
    world.run()
    assert world.output() == sent
    nothing_left(world)


@worlds
def test_what_nobody_wanted_in_time_is_counted_not_dead_lettered(make: Make) -> None:
    """A well-formed user event that nobody wants is counted, not dead-lettered."""
    world = make(order)
    world.send(event("e1", {"order": "o1", "amount": 5}))
    settle(world)
    [item] = world.items.values()
    assert item.expires_us == item.at_us + HOUR_US
    world.now_us = item.expires_us
    world.start("order", "o1")  # too late, whether it was swept or not
    settle(world)
    assert world.instances["i"].status == "waiting_for_event"
    world.send(event("e2", {"order": "o2"}))
    settle(world)
    [item] = world.items.values()
    world.step([ItemExpired(item.part, item.entity, item.seq)] * 2)
    assert not world.items
    assert world.core.stats["expired_event"] >= 1
    world.send(event("e3", {"order": "o1"}, romancyinstance="nobody"))
    settle(world)
    assert not world.items
    assert not world.dead_letters
    world.run()
    nothing_left(world)


def test_nothing_is_kept_with_a_ttl_of_zero() -> None:
    world = World(order, sleeper, event_ttl_s=0)
    world.start("sleeper", 5, "s")
    world.start("order", "o1")
    settle(world)
    world.send(event("e1", {"order": "o2", "amount": 1}))
    world.send(event("e2", {"order": "o1", "amount": 2}))
    world.send(event("e3", None, "s"))  # it does not wait yet
    settle(world)
    assert world.output() == 2
    assert world.core.stats["unwanted_event"] == 2
    world.run()
    assert world.error("s")["type"].endswith("EventTimeoutError")
    nothing_left(world)


def test_an_expired_event_that_is_on_offer_still_reaches_who_takes_it() -> None:
    world = World(order)
    world.start("order", "o1")
    settle(world)
    world.send(event("e1", {"order": "o1", "amount": 5}))
    world.step()
    [item] = world.items.values()
    offer, world.pending = world.pending, []
    world.step([ItemExpired(item.part, item.entity, item.seq)])
    assert not world.items
    world.pending = offer
    settle(world)
    assert world.output() == 5
    nothing_left(world)


def test_a_declared_key_must_be_in_the_data() -> None:
    world = World(order, anything, **KEYED)
    world.send(event("e1", {"amount": 5}))
    world.send(event("e2", {"order": ["o1"]}))
    world.start("anything")
    settle(world)
    assert [letter.reason for letter in world.dead_letters] == ["missing_key"] * 2
    assert "'order'" in world.dead_letters[0].message
    error = world.error()
    assert error["type"] == "builtins:ValueError"
    assert "match={'order': ...}" in error["message"]


def test_what_is_too_large_to_be_offered_is_a_dead_letter_and_all_else_arrives() -> None:
    world = World(sleeper, partitions=5)
    world.start("sleeper", 0)
    settle(world)
    data = "x" * (MAX_DATA_BYTES - 2)
    wide = {f"x{number}": "ä" * 250 for number in range(30)}
    narrow = {name: text for name, text in wide.items() if name < "x2"}
    world.send(event("e1", data, **wide, y="ö" * 1_000), part=1)
    world.send(event("e2", data, **narrow), part=2)
    world.run()
    assert [letter.reason for letter in world.dead_letters] == ["too_large"]
    assert world.output() == "e2"
    nothing_left(world)


def test_an_entity_keeps_so_many_events_and_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "KEPT_EVENTS", 3)
    world = World(anything)
    for number in range(5):
        world.send(event(f"e{number}"))
    settle(world)
    assert [orjson.loads(item.attrs)["id"] for item in world.items.values()] == ["e2", "e3", "e4"]
    assert world.core.stats["dropped_event"] == 2
    monkeypatch.setattr(correlation, "KEPT_BYTES", 100)
    world.send(event("large", "x" * 90))
    settle(world)
    assert [orjson.loads(item.attrs)["id"] for item in world.items.values()] == ["e3", "e4", "large"]
    world.restart()
    world.send(event("larger", "x" * 95))
    settle(world)
    assert [orjson.loads(item.attrs)["id"] for item in world.items.values()] == ["larger"]


# -- events that start workflows -------------------------------------------------------------------------------------
@worlds
@pytest.mark.parametrize("config", [{}, {"event_keys": {"placed": "order"}}])
def test_an_event_that_starts_a_workflow_is_offered_to_waiters_but_not_kept(make: Make, config: Any) -> None:
    @workflow(event_handler=True)
    async def placed(ctx: WorkflowContext, order: dict[str, str]) -> str:
        return order["order"]

    @workflow
    async def watcher(ctx: WorkflowContext, number: str) -> str:
        return (await ctx.wait_event("placed", match={"order": number}, timeout=60)).id

    world = make(placed, watcher, **config)
    world.start("watcher", "o1", "w1")
    settle(world)
    for part in range(world.config.partitions):
        world.send(event("e1", {"order": "o1"}, type="placed"), part)
    settle(world)
    assert world.output("w1") == "e1"
    assert [row.output for row in world.instances.values() if row.workflow == "placed"] == [b'"o1"']
    world.send(event("e2", {"order": "o2"}, type="placed"))
    world.send(event("e3", {"other": "o2"}, type="placed"))  # nothing to route by; it starts (and fails) all the same
    settle(world)
    assert not world.items
    world.start("watcher", "o2", "w2")
    world.run()
    assert world.error("w2")["type"].endswith("EventTimeoutError")
    assert len([row for row in world.instances.values() if row.workflow == "placed"]) == 3
    assert not world.dead_letters
    assert world.core.stats["unwanted_event"] == 0
    nothing_left(world)


def test_thousands_of_waits_and_events_in_one_batch() -> None:
    many = 1_500
    configs: list[dict[str, Any]] = [{}, KEYED]
    for config in configs:
        world = World(order, partitions=2, **config)
        for number in range(many):
            world.start("order", f"o{number}", f"i{number}")
        settle(world)
        assert len(world.members) == many
        for number in range(many):
            world.send(event(f"e{number}", {"order": f"o{number}", "amount": number}), number % 2)
        settle(world)
        assert all(world.output(f"i{number}") == number for number in range(many))
        nothing_left(world)
