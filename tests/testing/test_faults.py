"""Crashes before each step find code that is not deterministic; disorder is what a broker may do, and comes again."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal

import pytest

from romancy_stream import NonDeterminismError, Registry, WorkflowContext, activity, workflow
from romancy_stream.testing import StuckError, WorkflowEnvironment
from tests.testing import shop
from tests.testing.shop import Order, Receipt, app

registry = Registry()
SIDES: list[str] = []


@registry.add_activity
@activity
async def heads() -> str:
    return "heads"


@registry.add_activity
@activity
async def tails() -> str:
    return "tails"


@registry.add_workflow
@workflow
async def coin(ctx: WorkflowContext) -> str:
    SIDES.append("thrown")  # a side effect: every replay throws again
    return await (heads() if len(SIDES) % 2 else tails())


@registry.add_workflow
@workflow
async def fair_coin(ctx: WorkflowContext) -> str:
    return await (heads() if ctx.random.random() < 0.5 else tails())


async def test_code_that_is_not_deterministic_passes_without_crashes_and_is_found_with_them() -> None:
    SIDES.clear()
    async with WorkflowEnvironment(registry) as env:
        assert await env.execute(coin) == "heads"
    SIDES.clear()
    async with WorkflowEnvironment(registry, crashes="every-step") as env:
        with pytest.raises(NonDeterminismError) as diverged:
            await env.execute(coin)
        assert diverged.value.expected == "activity.scheduled heads:1 (heads)"
        assert diverged.value.actual == "activity.scheduled tails:1 (tails)"
        assert (await env.execute(fair_coin)) in ("heads", "tails")


async def test_an_eviction_finds_it_too() -> None:
    SIDES.clear()
    async with WorkflowEnvironment(registry, auto_skip=False) as env:
        env.mock(heads, returns="late", takes=60)
        handle = await env.start(coin)
        env.evict()
        await env.sleep(60)
        with pytest.raises(NonDeterminismError):
            await handle.result()
        assert (await handle.get()).parked is not None


async def test_what_works_works_with_crashes() -> None:
    async with WorkflowEnvironment(app, metadata=shop.Base.metadata) as env:
        assert not env.crash_before_each_step
        env.crash_before_each_step = True
        assert (await env.execute(shop.order, Order(id="o1", total=Decimal(1)))).number == "R-o1"
        assert await env.execute(shop.labels, ["a", "b"]) == ["label a #1", "label b #1"]
        handle = await env.start(shop.approval, "o1")
        await env.send_event(type="order.approved", data={"order_id": "o1", "by": "ada"})
        assert await handle.result() == "ada"


@pytest.mark.parametrize("seed", range(10))
async def test_what_works_works_in_disorder(seed: int) -> None:
    crashes = "every-step" if seed % 2 else "never"
    async with WorkflowEnvironment(app, disorder=True, seed=seed, crashes=crashes) as env:  # type: ignore[arg-type]
        env.mock(shop.charge, outcomes=[Receipt(number=str(n), amount=Decimal(n)) for n in range(3)])
        handles = [await env.start(shop.order, Order(id=name, total=Decimal(1))) for name in "abc"]
        numbers = await asyncio.gather(*(handle.result() for handle in handles))
        assert sorted(each.number for each in numbers) == ["0", "1", "2"]
        assert await env.execute(shop.labels, ["a", "b", "c"]) == [f"label {name} #1" for name in "abc"]
        assert len(env.published("order.done")) == 3
        assert len({event.id for event in env.published("label.made")}) == 3


async def _traces(seed: int | None) -> tuple[list[str], int | None]:
    async with WorkflowEnvironment(app, disorder=True, seed=seed) as env:
        handles = await env.start_many(shop.approval, [f"o{n}" for n in range(6)])
        for number in range(6):
            await env.send_event(
                type="order.approved", data={"order_id": f"o{number}", "by": str(number)}, id=str(number)
            )
        assert [await handle.result() for handle in handles] == [str(number) for number in range(6)]
        return [f"{event.type} {event.subject}" for event in env._entered.published], env.seed


async def test_a_seed_brings_the_same_disorder_again() -> None:
    order, seed = await _traces(None)
    assert (await _traces(seed))[0] == order
    orders = {tuple((await _traces(number))[0]) for number in range(5)}
    assert len(orders) > 1


async def test_the_seed_stands_in_the_error_that_leaves_the_block() -> None:
    with pytest.raises(StuckError) as stuck:
        async with WorkflowEnvironment(app, disorder=True, seed=77) as env:
            await env.handle("nobody").result()
    assert "seed=77" in "\n".join(stuck.value.__notes__)
    assert random.Random(77).random() != random.Random(78).random()


async def test_workflows_that_never_rest_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("romancy_stream.testing.driver.SKIPS_LIMIT", 100)

    @workflow
    async def polls(ctx: WorkflowContext) -> None:
        while True:
            await ctx.sleep(60)

    mine = Registry()
    mine.add_workflow(polls)
    async with WorkflowEnvironment(mine) as env:
        with pytest.raises(StuckError, match="moved on 100 times"):
            await env.execute(polls)
        await env.sleep(hours=10)
        assert len(await env.history("polls-1")) > 1_000
