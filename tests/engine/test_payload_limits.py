"""How large a value may be, in a world without I/O: what is too large is an error where it is handed over, and nothing
that a reader would refuse is ever sent."""

from __future__ import annotations

from typing import Any

import pytest

from romancy_stream import PayloadError, PayloadTooLargeError
from romancy_stream.context import WorkflowContext
from romancy_stream.engine.sealing import PLAIN, Sealing
from romancy_stream.wire.malformed import MAX_DATA_BYTES
from romancy_stream.workflow import workflow
from tests.engine.test_sealing import SORTS, pay, payloads, small, start, world

HUGE = "x" * MAX_DATA_BYTES
"""With its quotes two bytes too long, whatever is put around it."""


@workflow
async def too_much(ctx: WorkflowContext, how: str) -> str:
    try:
        if how == "activity":
            await pay(HUGE)
        elif how == "compensation":
            ctx.on_rollback(pay, HUGE)
        elif how == "child":
            await ctx.child(small, HUGE)
        elif how == "publish":
            ctx.publish("news", HUGE)
        elif how == "send_to":
            ctx.send_to("j", "mine", HUGE)
        elif how == "publish_event":
            ctx.publish_event(type="an.event", data=HUGE)
        elif how == "result":
            return HUGE
        elif how == "recur":
            await ctx.recur(HUGE)
        await ctx.sleep(1)
    except PayloadTooLargeError as error:
        return str(error)
    return "nothing"


ANYWHERE = ["activity", "compensation", "child", "publish", "send_to", "publish_event"]


@pytest.mark.parametrize("how", ANYWHERE)
def test_too_large_a_value_is_an_error_where_the_workflow_hands_it_over(how: str) -> None:
    here = world(too_much, sealing=PLAIN)
    here.start("too_much", how)
    here.run(restarts=True)
    assert "the limit is 983,040" in here.output()
    assert all(len(row.value or b"") < 10_000 for row in here.outbox)


@pytest.mark.parametrize("how", ["result", "recur"])
def test_a_result_or_an_input_of_the_next_run_that_is_too_large_ends_the_workflow(how: str) -> None:
    here = world(too_much, sealing=PLAIN)
    here.start("too_much", how)
    here.run()
    assert here.error()["type"].endswith("PayloadTooLargeError")
    assert all(len(row.value or b"") < 10_000 for row in here.outbox)


@pytest.mark.parametrize("how", [each for each in ANYWHERE if each != "publish_event"])
def test_a_store_lifts_the_limit(how: str) -> None:
    """Of all but events, which others read."""
    here = world(too_much, small, sealing=SORTS["both"], answers={"pay": lambda *_: "paid"}, partitions=3)
    start(here, "too_much", how)
    here.run(restarts=True)
    assert here.output() == "nothing"
    assert all(len(row.value or b"") < 10_000 for row in here.outbox)


def test_encryption_alone_leaves_a_limit() -> None:
    """Base64 makes three bytes four."""
    here = world(too_much, sealing=payloads())
    start(here, "too_much", "activity")
    here.run()
    assert "the limit is 983,040" in here.output()


def largest(overhead_bytes: int) -> str:
    return "x" * (MAX_DATA_BYTES - overhead_bytes)


@workflow
async def as_much_as_fits(ctx: WorkflowContext, how: str) -> int:
    text = largest(2)
    await ctx.subscribe("news")
    await ctx.subscribe("mine", "direct")
    if how == "activity":
        return len(await pay(largest(len(b'{"args":[""],"kwargs":{}}'))))
    if how == "child":
        grown: str = await ctx.child(small, largest(2 + len(" of a child")))
        return len(grown)
    if how == "publish":
        ctx.publish("news", text, {"about": "y" * 1_000})
        return len((await ctx.receive("news")).data)
    ctx.send_to(ctx.instance_id, "mine", text, {"about": "y" * 1_000})
    return len((await ctx.receive("mine")).data)


@pytest.mark.parametrize("how", ["activity", "child", "publish", "send_to"])
def test_the_largest_value_that_is_taken_arrives(how: str) -> None:
    here = world(
        as_much_as_fits, small, sealing=PLAIN, answers={"pay": lambda _, args: args[0] + "x" * 23}, partitions=3
    )
    here.start("as_much_as_fits", how)
    here.run()
    assert here.output() == MAX_DATA_BYTES - 2
    assert not here.dead_letters


# -- what looks sealed and is not --------------------------------------------------------------------------------------
@workflow
async def cheating(ctx: WorkflowContext, how: str) -> Any:
    fake = {"$romancy": "blob", "name": "0" * 64}
    if how == "result":
        return fake
    try:
        await pay(fake) if how == "activity" else ctx.publish("news", fake)  # type: ignore[arg-type]
    except PayloadError as error:
        return str(error)


@pytest.mark.parametrize("sealing", [PLAIN, *SORTS.values()], ids=["plain", *SORTS])
def test_a_value_that_looks_sealed_is_refused_where_it_is_made(sealing: Sealing) -> None:
    here = world(cheating, sealing=sealing)
    start(here, "cheating", "publish")
    start(here, "cheating", "result", "j")
    here.run(restarts=True)
    assert "$romancy" in here.output()
    assert here.error("j")["type"].endswith("PayloadError")
