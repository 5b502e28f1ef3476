"""What the tests of signals, updates and queries share: a workflow with handlers of all kinds, and ways to talk to it
in a world."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from romancy_stream import WorkflowContext, activity, workflow
from romancy_stream.engine.queries import ask
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.world import World

TIME = "2026-01-01T00:00:00Z"
_numbers = itertools.count()


def say(world: World, name: str, data: Any = None, to: str = "i", kind: str = w.SIGNAL, **given: Any) -> WireEvent:
    """A command as any producer sends it, in any partition, which one in turn in each world; nothing has processed it
    yet."""
    number = next(_numbers)
    raw = None if data is None else orjson.dumps(data)
    event = WireEvent(given.pop("id", f"c-{number}"), "/desk", kind, to, raw, TIME, {w.X_NAME: name, **given})
    world.send(event, next(world.said) % world.config.partitions)
    return event


def change(world: World, name: str, data: Any = None, to: str = "i", **given: Any) -> WireEvent:
    return say(world, name, data, to, w.UPDATE, **given)


def answers(world: World, command: WireEvent) -> list[Any]:
    told = [event for event in world.events if event.type == w.ANSWERED]
    return [orjson.loads(each.data or b"") for each in told if each.extensions[w.X_CAUSATION] == command.id]


def ask_world(world: World, name: str, *args: Any, to: str = "i") -> Any:
    definition = world.workflows[world.instances[to].workflow]
    history = world.run_of(to, world.instances[to].run)
    payload = definition.handlers[name].encode(*args)
    return orjson.loads(ask(definition, history, name, payload))


@activity
async def double(n: int) -> int:
    raise AssertionError("activities run in workers")


ANSWERS = {"double": lambda _, args: args[0] * 2}


@workflow
async def order(ctx: WorkflowContext) -> list[Any]:
    ctx.state.said, ctx.state.closed = [], False
    await ctx.wait_condition(lambda: ctx.state.closed)
    await ctx.wait_condition(ctx.all_handlers_finished)
    return list(ctx.state.said)


@order.signal
def note(ctx: WorkflowContext, text: str) -> None:
    ctx.state.said.append(text)


@order.signal
async def look_up(ctx: WorkflowContext, n: int, times: int = 1) -> None:
    for _ in range(times):
        n = await double(n)
    ctx.state.said.append(n)


@order.signal(name="close")
def close_it(ctx: WorkflowContext) -> None:
    ctx.state.closed = True


@order.query
def count(ctx: WorkflowContext) -> int:
    return len(ctx.state.said)


@order.query
def said_like(ctx: WorkflowContext, part: str) -> list[str]:
    return [text for text in ctx.state.said if part in str(text)]


@order.query
def meddle(ctx: WorkflowContext, how: str) -> int:
    if how == "state":
        ctx.state.closed = True
    elif how == "publish":
        ctx.publish_event(type="x")
    elif how == "task":
        ctx._scope.loop.create_future()  # type: ignore[attr-defined]
    return 0


@order.update
def rename(ctx: WorkflowContext, old: str, new: str) -> list[str]:
    ctx.state.said = [new if text == old else text for text in ctx.state.said]
    return list(ctx.state.said)


@rename.validator
def check_rename(ctx: WorkflowContext, old: str, new: str) -> None:
    if old not in ctx.state.said:
        raise ValueError(f"nobody said {old!r}")


@order.update
async def doubled(ctx: WorkflowContext, n: int) -> int:
    result = await double(n)
    ctx.state.said.append(result)
    return result


@order.update
def breaks(ctx: WorkflowContext) -> None:
    raise LookupError("nothing there")


@order.update
async def never(ctx: WorkflowContext) -> None:
    await ctx.wait_condition(lambda: False)


Settings = tuple[dict[str, Any], bool]
"""Of the world, and whether it crashes before each step."""


@pytest.fixture(name="settings", params=["live", "restarts", "one cached", "many partitions"])
def make_settings(request: pytest.FixtureRequest) -> Settings:
    cached = {"one cached": 1}.get(request.param, 1_000)
    partitions = {"many partitions": 7}.get(request.param, 1)
    return {"cached": cached, "partitions": partitions, "answers": ANSWERS}, request.param == "restarts"


def run_with(settings: Settings, *workflows: Any) -> tuple[World, Any]:
    world = World(*workflows, **settings[0])
    return world, lambda: world.run(restarts=settings[1])
