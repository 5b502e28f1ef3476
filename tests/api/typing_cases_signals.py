"""As `typing_cases`, for workflows that are classes, and for signals, queries and updates."""

from __future__ import annotations

from typing import assert_type

from romancy_stream import (
    App,
    Handle,
    Query,
    Signal,
    Update,
    Workflow,
    WorkflowContext,
    query,
    signal,
    update,
    workflow,
)

app = App("shop")


class Address:
    street: str = ""


@app.workflow
async def order(ctx: WorkflowContext, customer: str) -> int:
    await ctx.wait_condition(lambda: ctx.state.approved, timeout=5)
    await ctx.wait_condition(ctx.all_handlers_finished)
    if ctx.patched("checks"):
        ctx.deprecate_patch("older")
    await ctx.wait_condition(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return 1


@order.signal
def approve(ctx: WorkflowContext, by: str, level: int = 1) -> None: ...


@order.signal(name="stop")
async def stop_it() -> None: ...


@order.query
def progress(ctx: WorkflowContext) -> float:
    return 0.5


@order.query(name="lines")
def lines_of(ctx: WorkflowContext, sku: str) -> list[str]:
    return [sku]


@order.update
async def move(ctx: WorkflowContext, address: Address) -> str:
    return address.street


@move.validator
def check_move(ctx: WorkflowContext, address: Address) -> None: ...


@order.update
def count(ctx: WorkflowContext) -> int:
    return 1


assert_type(progress, Query[[], float])
assert_type(count, Update[[], int])


@app.workflow(name="cart", version="2")
class Cart:
    def __init__(self, ctx: WorkflowContext) -> None:
        self.items: list[str] = []

    async def run(self, ctx: WorkflowContext, owner: str) -> float:
        self.items.append(owner)
        return 0.5

    @signal
    def add(self, item: str) -> None: ...

    @signal(name="drop")
    async def drop_it(self, ctx: WorkflowContext, item: str, times: int = 1) -> None: ...

    @query
    def size(self) -> int:
        return len(self.items)

    @update
    async def swap(self, ctx: WorkflowContext, item: str) -> list[str]:
        return [item]

    @swap.validator
    def check(self, item: str) -> None: ...


@workflow
class Bare:
    async def run(self, ctx: WorkflowContext) -> int:
        return 1


@workflow
class Several:
    async def run(self, ctx: WorkflowContext, a: str, b: int = 2) -> str:
        return a


class NoRun:
    pass


workflow(NoRun)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def starts() -> None:
    assert_type(await app.start(Cart, "anna"), Handle[float])
    assert_type(await app.start(Cart, "anna", instance_id="c-1", on_conflict="fail"), Handle[float])
    assert_type(await app.start(Bare), Handle[int])
    assert_type(await app.start(Several, "a", b=3), Handle[str])
    assert_type(await (await app.start(Several, "a")).result(), str)
    assert_type(app.handle("c-1", Cart), Handle[float])
    assert_type(app.handle("o-1", order), Handle[int])
    assert_type(Workflow.of(Bare), Workflow[[], int])
    assert_type(await app.start(Workflow.of(Several).with_options(instance_id="s-1"), "a", 5), Handle[str])
    assert_type(Cart.size, Query[[], int])
    await app.start(Cart, 5)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await app.start(Several, 5)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def talks(handle: Handle[int], cart: Handle[float]) -> None:
    await handle.signal(approve, "anna")
    await handle.signal(approve, "anna", level=2)
    await handle.signal(stop_it)
    await handle.signal("approve", "anna")
    assert_type(await handle.query(progress), float)
    assert_type(await handle.query(lines_of, "a"), list[str])
    assert_type(await handle.update(move, Address(), timeout=30), str)
    assert_type(await handle.update(move, Address()), str)
    assert_type(await handle.update(count, timeout=30), int)
    await handle.update("count", timeout=5)
    await cart.signal(Cart.add, "pear")
    await cart.signal(Cart.drop_it, "pear", times=2)
    assert_type(await cart.query(Cart.size), int)
    assert_type(await cart.update(Cart.swap, "pear"), list[str])
    await app.signal("i-1", approve, "anna")
    assert_type(await app.query("i-1", progress), float)
    assert_type(await app.update("i-1", Cart.swap, "fig", timeout=5), list[str])

    await handle.signal(approve, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await handle.signal(approve)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await handle.signal(progress)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await handle.query(lines_of)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await handle.update(move, "a")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await handle.query(move, Address())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await cart.signal(Cart.add, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def kinds(one: Signal[[str]], two: Query[[], int], three: Update[[str], int]) -> None: ...
