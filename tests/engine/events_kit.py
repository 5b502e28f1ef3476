"""Events, workflows that wait for them, and worlds of one partition and of several, with and without crashes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from romancy_stream.context import WorkflowContext
from romancy_stream.errors import EventTimeoutError
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import workflow
from tests.engine.world import World

KEYED: dict[str, Any] = {"event_keys": {"paid": "order"}}


def event(
    id: str = "e1", data: Any = None, subject: str | None = None, type: str = "paid", **extensions: str
) -> WireEvent:
    return WireEvent(id, "/bank", type, subject, orjson.dumps(data), "2026-01-01T00:00:00Z", extensions)


def settle(world: World, restarts: bool = False) -> None:
    """Until only timers are left."""
    world.run(restarts=restarts, until_us=world.now_us)


def nothing_left(world: World) -> None:
    assert not world.entities
    assert not world.members
    assert not world.items
    world.check_projections()


class Crashing(World):
    """Before each step, with nothing in the cache."""

    def run(self, **options: Any) -> None:  # type: ignore[override]
        super().run(**options | {"restarts": True})


class Make:
    def __init__(self, kind: type[World], partitions: int) -> None:
        self._kind = kind
        self._partitions = partitions

    def __call__(self, *workflows: Any, **config: Any) -> World:
        cached = 0 if self._kind is Crashing else 100
        return self._kind(*workflows, partitions=self._partitions, cached=cached, **config)


worlds = pytest.mark.parametrize(
    "make",
    [Make(World, 1), Make(Crashing, 1), Make(World, 5), Make(Crashing, 5)],
    ids=["one", "one-crashes", "five", "five-crashes"],
)


@workflow
async def order(ctx: WorkflowContext, number: str) -> Any:
    paid = await ctx.wait_event("paid", match={"order": number}, timeout=3_600)
    return paid.data["amount"]


@workflow
async def anything(ctx: WorkflowContext) -> Any:
    got = await ctx.wait_event("paid")
    return [got.type, got.source, got.id, got.subject, str(got.time), dict(got.extensions), got.data]


@workflow
async def patient(ctx: WorkflowContext, number: str) -> Any:
    """Gives up, and waits again."""
    late = 0
    while True:
        try:
            paid = await ctx.wait_event("paid", match={"order": number}, timeout=10)
        except EventTimeoutError:
            late += 1
        else:
            return [late, paid.id]


@workflow
async def sleeper(ctx: WorkflowContext, seconds: int) -> Any:
    await ctx.sleep(seconds)
    return (await ctx.wait_event("paid", timeout=10)).id
