"""Events in disorder, from a seed: they come late, twice and over any partition, processes crash before any step, waits
time out and begin again. Whatever happens, each event reaches who waits for it, once."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from random import Random
from typing import Any

import pytest

from romancy_stream.context import WorkflowContext
from romancy_stream.errors import EventTimeoutError
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import Record
from romancy_stream.workflow import workflow
from tests.engine.events_kit import KEYED, event, nothing_left
from tests.engine.world import World

SEEDS = range(25)
INSTANCES = 4
EVENTS = 12
STEPS_LIMIT = 5_000


@workflow
async def collector(ctx: WorkflowContext, number: str) -> list[str]:
    got: list[str] = []
    while len(got) < EVENTS:
        try:
            got.append((await ctx.wait_event("paid", match={"order": number}, timeout=3)).id)
        except EventTimeoutError:
            if ctx.random.random() < 0.2:
                await ctx.sleep(1)
    return got


@workflow
async def sharing(ctx: WorkflowContext, number: str) -> list[str]:
    """Two of its tasks wait for the same events, each for a time of its own: an event may come to both."""
    got: list[str] = []

    async def take(timeout: float) -> None:
        while len(set(got)) < EVENTS:
            try:
                async with asyncio.timeout(timeout):
                    got.append((await ctx.wait_event("paid", match={"order": number})).id)
            except TimeoutError:
                pass

    await asyncio.wait([asyncio.ensure_future(take(2)), asyncio.ensure_future(take(5))])
    return got


class Disorder(World):
    """Messages from partition to partition keep their order, as a log keeps it; what outsiders send has none."""

    def __init__(self, dice: Random, *workflows: Any, **config: Any) -> None:
        super().__init__(*workflows, partitions=3, cached=dice.choice([0, 1, 100]), **config)
        self.dice = dice
        self.late: list[Record] = []

    def disturb(self) -> None:
        if self.dice.random() < 0.3:
            self.restart()
        self.pending, self.late = self.late + self.pending, []
        logs: dict[int, list[Record]] = defaultdict(list)
        outside = []
        for record in self.pending:
            decoded = decode(record)
            assert isinstance(decoded, WireEvent)
            if w.X_ORIGIN in decoded.extensions:
                logs[record.partition].append(record)
            else:
                outside.append(record)
        outside += [record for record in outside if self.dice.random() < 0.2]
        self.dice.shuffle(outside)
        self.pending = []
        for log in (*logs.values(), outside):
            cut = self.dice.randint(0, len(log))
            self.pending += log[:cut]
            # What was sent twice comes again later; what was not read yet comes next.
            self.late += log[cut:] + [record for record in log[:cut] if self.dice.random() < 0.1]

    def run_disturbed(self, commands: list[tuple[WireEvent, int]]) -> None:
        for _ in range(STEPS_LIMIT):
            if commands and self.dice.random() < 0.5:
                self.send(*commands.pop())
            self.disturb()
            due_us = self.core.timers.next_due_us()
            if not (self.pending or self.late or commands) and due_us is None:
                return
            if not self.pending and due_us is not None and self.dice.random() < 0.5:
                self.now_us = max(self.now_us, due_us)
            self.step()
        raise AssertionError("the world does not come to rest")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("code", [collector, sharing], ids=["loop", "two-tasks"])
def test_a_wait_in_a_loop_loses_nothing(seed: int, code: Any) -> None:
    dice = Random(seed)
    config: dict[str, Any] = KEYED if dice.random() < 0.5 else {}
    world = Disorder(dice, code, **config, event_ttl_s=10**7)
    sent: dict[str, list[str]] = {f"i{number}": [] for number in range(INSTANCES)}
    commands: list[tuple[WireEvent, int]] = []
    for instance, ids in sent.items():
        for number in range(EVENTS):
            id_ = f"{instance}/{number}"
            aimed = instance if dice.random() < 0.3 else None
            ids.append(id_)
            for _ in range(dice.choice([1, 1, 2])):  # also twice, over another partition
                commands.append((event(id_, {"order": instance}, aimed), dice.randrange(3)))
    dice.shuffle(commands)
    for instance in sent:
        world.start(code.name, instance, instance)
    world.run_disturbed(commands)
    for instance, ids in sent.items():
        got = Counter(world.output(instance))
        assert set(got) == set(ids), f"seed {seed}"
        assert max(got.values()) <= (1 if code is collector else 2), f"seed {seed}"
    assert not world.dead_letters
    nothing_left(world)
