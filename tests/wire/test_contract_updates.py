"""What is said of signals and updates in `topics/`, and what the engine does with them."""

from __future__ import annotations

import re

import orjson

from romancy_stream import WorkflowContext, workflow
from romancy_stream.wire import event as names
from romancy_stream.wire.event import WireEvent
from tests.engine.world import World
from tests.wire.test_contract import ROOT, problems

TIME = "2026-01-31T12:00:00Z"


@workflow
async def order(ctx: WorkflowContext) -> None:
    await ctx.wait_condition(lambda: getattr(ctx.state, "over", False))


@order.update
async def double(ctx: WorkflowContext, n: int) -> int:
    if n > 10:
        raise LookupError("too much")
    if n == 0:
        await ctx.wait_condition(lambda: False)
    return 2 * n


@double.validator
def check(ctx: WorkflowContext, n: int) -> None:
    if n < 0:
        raise ValueError("not less than nothing")


@order.signal
def end(ctx: WorkflowContext) -> None:
    ctx.state.over = True


def _say(world: World, event_id: str, type_: str, name: str, data: bytes | None, to: str = "i") -> None:
    event = WireEvent(event_id, "/desk", type_, to, data, TIME, {names.X_NAME: name})
    world.send(event, world.part_of(to))
    world.run()


def test_answers_are_what_the_contract_says_and_each_reason_is_documented() -> None:
    world = World(order, partitions=2)
    world.start("order")
    world.run()
    given = [
        ("ok", "double", b"4", "i"),
        ("update_rejected", "double", b"-1", "i"),
        ("update_failed", "double", b"11", "i"),
        ("instance_not_found", "double", b"1", "nobody"),
        ("unknown_handler", "triple", b"1", "i"),
        ("invalid_input", "double", b'"x"', "i"),
        ("left open", "double", b"0", "i"),
    ]
    for event_id, name, data, to in given:
        _say(world, event_id, names.UPDATE, name, data, to)
    _say(world, "s-1", names.SIGNAL, "end", None)
    _say(world, "instance_finished", names.UPDATE, "double", b"1")
    told = {}
    for row in world.outbox:
        headers = dict(row.headers)
        if headers["ce_type"] == names.ANSWERED:
            assert problems([(name, text.encode()) for name, text in row.headers], row.value) == []
            told[headers["ce_causationid"]] = orjson.loads(row.value or b"")
    assert told.pop("ok") == {"ok": True, "result": 8}
    assert told.pop("left open")["reason"] == "instance_finished"
    assert {event_id: answer["reason"] for event_id, answer in told.items()} == {reason: reason for reason in told}
    documented = set(
        re.findall(r"^\| `(\w+)` \| (?:`\w+`)? *\| ", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    )
    assert documented == {*told, "instance_parked"}
    letters = sorted(letter.reason for letter in world.dead_letters)
    assert letters == ["instance_finished", "invalid_input", "unknown_handler", "unknown_instance"]
