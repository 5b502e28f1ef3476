"""An environment records what an app records: the same workflow in both, and their histories side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from romancy_stream import (
    ActivityContext,
    App,
    HistoryEntry,
    Registry,
    RetryPolicy,
    WorkflowContext,
    activity,
    workflow,
)
from romancy_stream.testing import WorkflowEnvironment

registry = Registry()


@registry.add_activity
@activity(retry=RetryPolicy.fixed(3, 0.01))
async def flaky(ctx: ActivityContext, name: str) -> str:
    if ctx.attempt == 1:
        raise ConnectionError(name)
    ctx.publish_event(type="flaky.done", data=name)
    return name


@registry.add_activity
@activity(retry=RetryPolicy.none())
def broken(ctx: ActivityContext) -> None:
    raise ValueError("for good")


@registry.add_workflow
@workflow
async def everything(ctx: WorkflowContext, names: list[str]) -> list[str]:
    done = [await flaky(name) for name in names]
    await ctx.sleep(0.01)
    try:
        await broken()
    except Exception as error:
        done.append(type(error).__name__)
    try:
        async with asyncio.timeout(0.01):
            await ctx.wait_event("never")
    except TimeoutError:
        ctx.publish_event(type="given.up", subject="s")
    return done


def comparable(entries: Any) -> list[tuple[Any, ...]]:
    """Without times, and without what names the process that did it."""
    gone = ("duration_us", "worker", "event_id", "event_source", "due_us", "next_at_us", "eager")

    def told(entry: HistoryEntry) -> tuple[Any, ...]:
        attrs = {name: value for name, value in entry.attrs.items() if name not in gone}
        payload = entry.payload
        if isinstance(payload, dict) and "stack" in payload:
            payload = {name: value for name, value in payload.items() if name != "stack"}
        return entry.seq, entry.kind, entry.ref, attrs, payload

    return [told(entry) for entry in entries]


async def test_the_histories_of_an_app_and_of_an_environment_are_the_same(tmp_path: Path) -> None:
    app = App("fidelity", broker=f"embedded://{tmp_path}/log", database=f"sqlite:///{tmp_path}/state.db", partitions=1)
    app.include(registry)
    async with app:
        handle = await app.start(everything, ["a", "b"], instance_id="same")
        expected = await handle.result(timeout=60)
        history = comparable(await app.history("same"))
    for crashes in ("never", "every-step"):
        async with WorkflowEnvironment(registry, crashes=crashes) as env:
            assert await env.execute(everything, ["a", "b"], instance_id="same") == expected
            assert comparable(await env.history("same")) == history
