"""Messages that were set aside because they spoil what they are in: nothing is lost, and nobody waits in vain."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest

from romancy_stream import WorkflowContext, workflow
from romancy_stream.engine.failure import decode_error
from romancy_stream.engine.inputs import Received, Refused
from romancy_stream.errors import CommandRefusedError
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from tests.engine.events_kit import event
from tests.engine.world import World

TIME = "2026-01-01T00:00:00Z"


@workflow
async def waits(ctx: WorkflowContext) -> str:
    return (await ctx.wait_event("paid")).id


@pytest.fixture
def world() -> Iterator[World]:
    """With an instance in it that waits."""
    made = World(waits)
    made.start("waits")
    made.run()
    yield made
    made.core.drop(made.core.owned)


def spoil(world: World) -> None:
    spoiled = [Refused(Received(each, decode(each)), "refused_by_database", "why") for each in world.pending]
    world.pending = []
    world.step(spoiled)


@pytest.mark.parametrize("type_", [w.CANCEL, w.UPDATE, w.RETRY, w.RESET, w.FORK, w.DELETE])
def test_the_sender_of_a_command_is_answered(world: World, type_: str) -> None:
    before = len(world.history["i"])
    world.send(WireEvent("c-1", "/desk", type_, "i", None, TIME, {w.X_NAME: "x", w.X_INSTANCE: "i", w.X_RUN: "1"}))
    spoil(world)
    [letter] = world.dead_letters
    assert letter.reason == "refused_by_database"
    [answer] = [each for each in world.events if each.type == w.ANSWERED]
    told = orjson.loads(answer.data or b"")
    assert (answer.extensions[w.X_CAUSATION], told["ok"], told["reason"]) == ("c-1", False, "command_refused")
    error = decode_error(orjson.dumps(told["error"]))
    assert isinstance(error, CommandRefusedError)
    assert "why" in str(error)
    assert len(world.history["i"]) == before
    assert world.instances["i"].parked is None


def test_a_signal_is_a_dead_letter_and_nothing_else(world: World) -> None:
    world.send(WireEvent("s-1", "/desk", w.SIGNAL, "i", None, TIME, {w.X_NAME: "x"}))
    spoil(world)
    assert len(world.dead_letters) == 1
    assert not [each for each in world.events if each.type == w.ANSWERED]


def test_an_instance_that_loses_what_was_delivered_to_it_is_halted(world: World) -> None:
    world.send(event("e1"))
    world.step()  # the entity passes it on
    [mail] = world.pending
    spoil(world)
    assert world.instances["i"].parked == "refused_by_database: why"
    world.restart()  # somebody has looked at it
    world.pending = [mail]
    world.run()
    assert world.instances["i"].parked is None
    world.check_projections()


def test_who_has_ended_stays_as_it_is(world: World) -> None:
    world.send(event("e1"))
    world.step()
    mail = list(world.pending)
    world.run()
    assert world.output() == "e1"
    world.pending = mail
    spoil(world)
    assert world.instances["i"].parked is None
    assert world.output() == "e1"
