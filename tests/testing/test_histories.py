"""Histories as files, and their replay as a regression test."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

import pytest

from romancy_stream import NonDeterminismError, Registry, UnknownWorkflowError, WorkflowContext, workflow
from romancy_stream.errors import BrokenLogError, InvalidInputError
from romancy_stream.testing import WorkflowEnvironment, dump_history, load_history, replay
from tests.engine import test_core
from tests.testing import shop
from tests.testing.shop import Order, app

GOLDEN = Path(__file__).parents[1] / "golden"


async def _recorded() -> str:
    async with WorkflowEnvironment(app) as env:
        env.mock(shop.charge, outcomes=[ConnectionError("down"), shop.Receipt(number="R", amount=Decimal("1.10"))])
        handle = await env.start(shop.order, Order(id="ö1", total=Decimal("1.10")))
        await handle.result()
        return dump_history(await env.history(handle))


async def test_a_history_goes_to_a_file_and_back_and_replays(tmp_path: Path) -> None:
    text = await _recorded()
    history = load_history(text)
    path = tmp_path / "order.json"
    assert dump_history(history, path) == text == path.read_text("utf-8")
    assert load_history(path) == load_history(str(path)) == history
    assert (history.instance_id, history.run, history.workflow_name) == ("order-1", 1, "order")
    for code in (shop.order, app, app.registry):
        replay(history, code)
        replay(path, code)
    replay(history.events[:3], shop.order)  # as it was in the middle


async def test_two_recordings_of_one_test_are_the_same() -> None:
    """But for the id of the command that started it."""
    one, other = load_history(await _recorded()), load_history(await _recorded())
    one.events[0].attrs["event_id"] = other.events[0].attrs["event_id"]
    assert dump_history(one) == dump_history(other)


async def test_changed_code_is_found() -> None:
    history = load_history(await _recorded())

    @workflow(name="order")
    async def changed(ctx: WorkflowContext, order: Order) -> None:
        await ctx.sleep(1)

    @workflow(name="order")
    async def shorter(ctx: WorkflowContext, order: Order) -> None:
        await shop.charge(order.id, order.total)

    @workflow(name="order")
    async def other_input(ctx: WorkflowContext, number: int) -> None: ...

    @workflow(name="order")
    async def never_rests(ctx: WorkflowContext, order: Order) -> None:
        for _ in range(1_000_000_000):
            await asyncio.sleep(0)

    with pytest.raises(NonDeterminismError) as diverged:
        replay(history, changed)
    assert diverged.value.expected == "activity.scheduled charge:1 (charge)"
    assert diverged.value.actual == "timer.started timer:1"
    with pytest.raises(NonDeterminismError, match=r"timer\.started timer:1, the code now does workflow\.completed"):
        replay(history, shorter)
    with pytest.raises(InvalidInputError):
        replay(history, other_input)
    with pytest.raises(NonDeterminismError, match="goes round"):
        replay(history, never_rests)
    with pytest.raises(UnknownWorkflowError, match="one of workflow 'order'"):
        replay(history, shop.labels)
    with pytest.raises(UnknownWorkflowError):
        replay(history, Registry())


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_what_the_engines_own_tests_keep_is_of_this_format(path: Path) -> None:
    history = load_history(path)
    code = {each.name: each for each in (test_core.steps, test_core.everything)}.get(history.workflow_name)
    if code is not None:
        replay(history, code)
    assert len(history) == len(json.loads(path.read_text("utf-8"))["history"])


@pytest.mark.parametrize(
    "text", ["{}", "[]", "[1]", '{"history": []}', '{"history": [{"seq": 1}]}', "{", '{"format": 2}']
)
def test_what_is_no_history(text: str) -> None:
    with pytest.raises(BrokenLogError):
        load_history(text)
