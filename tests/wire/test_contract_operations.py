"""What is said of operations in `topics/`, and what the engine answers."""

from __future__ import annotations

import re

import orjson

from romancy_stream import TerminalError, WorkflowContext, workflow
from romancy_stream.wire import event as names
from romancy_stream.wire.event import WireEvent
from tests.engine.world import World
from tests.wire.test_contract import ROOT, problems

TIME = "2026-01-31T12:00:00Z"


@workflow
async def fails(ctx: WorkflowContext) -> None:
    raise TerminalError("no")


@workflow
async def sleeps(ctx: WorkflowContext) -> None:
    await ctx.sleep(3_600)


def _operate(world: World, event_id: str, type_: str, to: str, **extensions: str) -> None:
    event = WireEvent(event_id, "/desk", type_, to, None, TIME, extensions)
    given = [(f"ce_{name}", text.encode()) for name, text in extensions.items()]
    headers = [("ce_specversion", b"1.0"), ("ce_id", event_id.encode()), ("ce_source", b"/desk"), *given]
    headers += [("ce_type", type_.encode()), ("ce_subject", to.encode())]
    assert problems(headers, None) == []
    world.send(event, world.part_of(to))
    world.run(until_us=world.now_us)


def test_answers_are_what_the_contract_says_and_each_reason_is_documented() -> None:
    world = World(fails, sleeps, partitions=3)
    world.start("fails", None, "f")
    world.start("sleeps", None, "s")
    world.run(until_us=world.now_us)
    _operate(world, "retried", names.RETRY, "f")
    _operate(world, "reset", names.RESET, "s", sequence="1")
    _operate(world, "forked", names.FORK, "t", romancyinstance="s", romancyrun="1", sequence="1")
    _operate(world, "not_retryable", names.RETRY, "s")
    _operate(world, "invalid_reset_point", names.RESET, "s", sequence="99")
    _operate(world, "instance_exists", names.FORK, "s", romancyinstance="f", romancyrun="1")
    _operate(world, "not_deletable", names.DELETE, "s")
    _operate(world, "deleted", names.DELETE, "f")
    _operate(world, "instance_not_found", names.RETRY, "f")
    told = {}
    for row in world.outbox:
        headers = dict(row.headers)
        if headers["ce_type"] == names.ANSWERED:
            assert problems([(name, text.encode()) for name, text in row.headers], row.value) == []
            told[headers["ce_causationid"]] = orjson.loads(row.value or b"")
    assert told.pop("retried") == told.pop("reset") == {"ok": True, "run": 2}
    assert told.pop("forked") == {"ok": True, "run": 1}
    assert told.pop("deleted") == {"ok": True}
    assert {event_id: answer["reason"] for event_id, answer in told.items()} == {reason: reason for reason in told}
    [section] = re.findall(r"^### Operations\n(.*?)^#", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.M)
    assert set(re.findall(r"^- `(\w+)`:", section, re.MULTILINE)) == set(told)
