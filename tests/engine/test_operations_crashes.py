"""Retry, reset, fork and delete under disorder from a seed: processes die before and after a commit, messages come
twice and late, the cache is tiny. Every command is answered once, every instance comes to an end, and nothing of a run
stays behind that another one has followed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest

from romancy_stream import RetryPolicy, TerminalError, activity, workflow
from romancy_stream.context import WorkflowContext
from romancy_stream.errors import EventTimeoutError, MessageTimeoutError
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.events_kit import event
from tests.engine.saying import say
from tests.engine.test_channel_crashes import Chaos
from tests.engine.test_channels import message

SEEDS = range(30)
OPERATIONS = 25
TIME = "2026-01-01T00:00:00Z"


@activity
async def undo(what: int) -> None:
    raise AssertionError("activities run in workers")


@activity(compensate=undo)
async def do(what: int) -> int:
    raise AssertionError("activities run in workers")


@activity(retry=RetryPolicy.fixed(3, 1.0))
async def shaky(what: int) -> int:
    raise AssertionError("activities run in workers")


@workflow
async def kid(ctx: WorkflowContext, seconds: float) -> float:
    await ctx.sleep(seconds)
    return seconds


@workflow
async def busy(ctx: WorkflowContext, undoes: bool) -> list[Any]:
    ctx.state.heard = []
    await ctx.subscribe("news", mode="broadcast")
    got: list[Any] = []
    got += await asyncio.gather(shaky(1), ctx.child(kid, 0.5), shaky(2))
    if undoes:
        got.append(await do(3))
    try:
        got.append((await ctx.receive("news", timeout=2)).data)
    except MessageTimeoutError:
        got.append(None)
    try:
        got.append((await ctx.wait_event("paid", timeout=2)).id)
    except EventTimeoutError:
        got.append(None)
    got.append(await ctx.child(kid, 0.1))
    got.append(await shaky(4))
    return [*got, *ctx.state.heard]


@busy.signal
def note(ctx: WorkflowContext, text: str) -> None:
    ctx.state.heard.append(text)


class Operated(Chaos):
    def __init__(self, seed: int) -> None:
        self.sent: list[WireEvent] = []
        super().__init__(seed, busy, kid)
        self.answers = {
            "do": lambda _, args: args[0],
            "undo": lambda *_: None,
            "shaky": self._shaky,
        }

    def _shaky(self, _: Any, args: list[Any]) -> Any:
        chance = self.dice.random()
        if chance < 0.1:
            raise TerminalError("no")
        if chance < 0.3:
            raise RuntimeError("not now")
        return args[0]

    def operate(self, number: int) -> None:
        """Something of everything that may happen to a busy instance."""
        at = self.dice.choice(["a", "b", *(each for each in self.instances if each.startswith("fork"))])
        events = self.history.get(at, [])
        kind = self.dice.choice([w.RESET, w.RESET, w.RETRY, w.RETRY, w.FORK, w.DELETE, "signal", "event", "message"])
        extensions = {}
        if kind == "signal":
            say(self, "note", str(number), to=at)
        elif kind == "event":
            self.send(event(f"e{number}"))
        elif kind == "message":
            self.send(message("news", number, f"m{number}"))
        else:
            to = at
            if kind in (w.RESET, w.FORK) and events:
                last = [each for each in events if each.run == events[-1].run]
                extensions[w.X_SEQUENCE] = str(self.dice.randint(1, len(last)))
            if kind == w.FORK:
                to = f"fork-{number % 3}"
                extensions |= {w.X_INSTANCE: at, w.X_RUN: str(events[-1].run if events else 1)}
            command = WireEvent(f"op-{number}", "/operator", kind, to, None, TIME, extensions)
            self.sent.append(command)
            self.send(command, self.part_of(to))


@pytest.mark.parametrize("seed", SEEDS)
def test_operations_at_any_moment(seed: int) -> None:
    here = Operated(seed)
    for instance_id in "ab":
        here.start("busy", instance_id == "a", instance_id)
    for number in range(OPERATIONS):
        here.run(until_us=here.now_us + here.dice.choice([0, 1_000, 300_000, 3_000_000]))
        here.operate(number)
    here.run()
    told = Counter(each.id for each in here.events if each.type == w.ANSWERED)
    answered = Counter(
        each.extensions[w.X_CAUSATION] for each in {e.id: e for e in here.events if e.type == w.ANSWERED}.values()
    )
    assert answered == Counter(command.id for command in here.sent)
    assert told.total() >= len(here.sent)
    assert {row.status for row in here.instances.values()} <= {"completed", "failed", "cancelled"}
    assert not [row.instance_id for row in here.instances.values() if row.parked]
    assert not here.timers
    assert not here.members
    done = [orjson.loads(e.data or b"{}") for e in here.events if e.type == w.ANSWERED]
    assert any(each["ok"] for each in done)
    here.check_projections()


def test_the_disorder_reaches_every_operation() -> None:
    """Else the test above would prove less than it says."""
    kinds: Counter[str] = Counter()
    for seed in range(1, 13):
        here = Operated(seed)
        here.start("busy", True, "a")
        here.start("busy", False, "b")
        for number in range(OPERATIONS):
            here.run(until_us=here.now_us + here.dice.choice([0, 1_000, 300_000, 3_000_000]))
            here.operate(number)
        here.run()
        by_id = {command.id: command.type for command in here.sent}
        for each in here.events:
            if each.type == w.ANSWERED and orjson.loads(each.data or b"")["ok"]:
                kinds[by_id[each.extensions[w.X_CAUSATION]]] += 1
    assert set(kinds) == {w.RESET, w.RETRY, w.FORK, w.DELETE}
