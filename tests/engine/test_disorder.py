"""Disorder from a seed: messages come late, twice and out of order, processes crash before any step, the cache is
tiny. Whatever happens, an instance ends as it would have in peace, and its history holds each step once."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import pytest

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.errors import ActivityTimeoutError, RetryExhaustedError
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.workflow import workflow
from tests.engine.world import World

SEEDS = range(60)
INSTANCES = 6
STEPS_LIMIT = 5_000


@activity(retry=RetryPolicy(max_attempts=3, initial_interval=0.5, jitter=0.5))
async def work(value: int) -> int:
    raise AssertionError("activities run in workers")


@workflow
async def branching(ctx: WorkflowContext, value: int) -> Any:
    parts = await asyncio.gather(*(work(value + n) for n in range(4)), return_exceptions=True)
    good = [part for part in parts if isinstance(part, int)]
    lost = [part for part in parts if isinstance(part, RetryExhaustedError)]
    await ctx.sleep(2)
    try:
        await work.with_options(total_timeout=45, activity_id="last")(value * 5)
    except (ActivityTimeoutError, RetryExhaustedError):
        good.append(-1)  # which of the two depends on how late the messages are
    ctx.publish_event(type="branched", data=value)
    return [good, len(lost)]


def answer(headers: dict[str, str], args: list[Any]) -> int:
    """Multiples of 5 never work, multiples of 3 do the second time."""
    value = int(args[0])
    if value % 5 == 0 or (value % 3 == 0 and headers[w.X_ATTEMPT] == "1"):
        raise ConnectionError(value)
    return value * 10


class Disorder(World):
    def __init__(self, random: Random) -> None:
        super().__init__(branching, answers={"work": answer}, partitions=2, cached=random.choice([0, 1, 100]))
        self.dice = random

    def disturb(self) -> None:
        """Delays, doubles and reorders what is under way. Messages from partition to partition keep their order, as
        a log keeps it."""
        if self.dice.random() < 0.3:
            self.restart()
        self.pending += [record for record in self.pending if self.dice.random() < 0.2]
        self.dice.shuffle(self.pending)
        late = [record for record in self.pending if self.dice.random() < 0.3]
        self.pending = [record for record in self.pending if record not in late]
        self.late += late

    late: list[Any] = []  # noqa: RUF012 - set per instance in run_disturbed

    def run_disturbed(self) -> None:
        self.late = []
        for _ in range(STEPS_LIMIT):
            self.disturb()
            due_us = self.core.timers.next_due_us()
            if not self.pending and not self.late and due_us is None:
                return
            if not self.pending and due_us is not None and self.dice.random() < 0.5:
                self.now_us = max(self.now_us, due_us)
            self.step()
            if self.dice.random() < 0.5:
                self.pending, self.late = self.pending + self.late, []
        raise AssertionError("the world does not come to rest")


@pytest.mark.parametrize("seed", SEEDS)
def test_disorder_changes_nothing(seed: int) -> None:
    peaceful = World(branching, answers={"work": answer}, partitions=2)
    disturbed = Disorder(Random(seed))
    for world in (peaceful, disturbed):
        for number in range(INSTANCES):
            world.start("branching", number, f"i{number}")
    peaceful.run()
    disturbed.run_disturbed()
    for number in range(INSTANCES):
        assert disturbed.output(f"i{number}") == peaceful.output(f"i{number}"), f"seed {seed}"
        ends = Counter(
            e.ref for e in disturbed.history[f"i{number}"] if e.kind in ("activity.completed", "activity.failed")
        )
        assert set(ends.values()) == {1}
        assert len(ends) == 5
    told = Counter(event.id for event in disturbed.events if event.type == "branched")
    assert len(told) == INSTANCES
    assert set(told.values()) == {1}
    assert not disturbed.dead_letters
    disturbed.check_projections()
