"""Channels under disorder from a seed: processes die before and after a commit, partitions fall behind each other,
messages between them and from outside come twice, the cache is tiny. No message is lost and none comes twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from romancy_stream.context import WorkflowContext
from romancy_stream.engine.commit import Commit
from romancy_stream.engine.inputs import Input
from romancy_stream.errors import MessageTimeoutError
from romancy_stream.wire.record import Record
from romancy_stream.workflow import workflow
from tests.engine.test_channels import listen, message, of, talk
from tests.engine.world import World

SEEDS = range(25)
PARTITIONS = 4
MESSAGES = 12
OUTSIDE = 8
CONSUMERS = 3


class Crashed(Exception):
    pass


class Chaos(World):
    def __init__(self, seed: int, *workflows: Any) -> None:
        self.dice = Random(seed)
        self.crashes = 0
        self.log: list[Record] = []
        self.dropped: Counter[str] = Counter()
        super().__init__(*workflows, partitions=PARTITIONS, cached=self.dice.choice([0, 1, 100]))

    def restart(self, *workflows: Any) -> None:
        self.dropped += self.core.stats
        super().restart(*workflows)

    def apply(self, commit: Commit) -> None:
        if self.dice.random() < 0.15:
            raise Crashed
        super().apply(commit)

    def step(self, inputs: Iterable[Input] = ()) -> Commit:
        before = list(self.pending)
        self.pending = self._some()
        rest = [record for record in before if record not in self.pending]
        self.log += self.pending
        try:
            commit = super().step(inputs)
        except Crashed:
            self.crashes += 1
            self.pending = before
            self.restart()
            return Commit()
        self.pending = rest + self.pending
        if self.dice.random() < 0.2:
            self.restart()
        if self.dice.random() < 0.3:  # a predecessor's outbox, or a producer that did not hear that it was heard
            self.pending += self.log[-self.dice.randint(1, 20) :]
        return commit

    def _some(self) -> list[Record]:
        """A part of what is there: in each partition of each topic in its order."""
        chosen: list[Record] = []
        left: dict[tuple[str, int], int] = defaultdict(lambda: self.dice.randint(0, 6))
        for record in self.pending:
            place = record.topic, record.partition
            if left[place] > 0:
                chosen.append(record)
            left[place] -= 1
        return chosen

    def run(self, *, restarts: bool = False, until_us: int | None = None, limit: int = 20_000) -> None:
        super().run(restarts=restarts, until_us=until_us, limit=limit)


@workflow
async def consume(ctx: WorkflowContext, channel: str, patience: int, got: list[Any]) -> list[Any]:
    """Impatient, and begins anew every now and then."""
    await ctx.subscribe(channel, "competing")
    for _ in range(3):
        try:
            got.append((await ctx.receive(channel, timeout=ctx.random.choice([0.001, 0.01, 3]))).data)
        except MessageTimeoutError:
            if patience == 0:
                await ctx.sleep(1)  # is still there, and wants no more
                return got
            patience -= 1
    await ctx.recur(channel, patience, got)


@workflow
async def follow(ctx: WorkflowContext, channel: str, got: list[Any]) -> list[Any]:
    """Recurs while messages come in, with some of them unread."""
    await ctx.subscribe(channel, "broadcast")
    for _ in range(4):
        try:
            got.append((await ctx.receive(channel, timeout=60)).data)
        except MessageTimeoutError:
            return got
    await ctx.sleep(0.05)
    await ctx.recur(channel, got)


def outside(world: Chaos, channel: str) -> list[list[Any]]:
    sent = []
    for number in range(OUTSIDE):
        data = ["outside", number]
        for _ in range(world.dice.choice([1, 1, 2])):
            world.send(message(channel, data, f"m{number}"), world.part_of(f"channel:{channel}"))
        sent.append(data)
    return sent


@pytest.mark.parametrize("seed", SEEDS)
def test_competing_gives_each_message_to_one(seed: int) -> None:
    world = Chaos(seed, consume, talk, listen)
    for number in range(CONSUMERS):
        world.start("consume", {"channel": "jobs", "patience": 2 + number, "got": []}, f"c{number}")
    for number in range(2):
        world.start("talk", {"channel": "jobs", "count": MESSAGES}, f"t{number}")
    sent = outside(world, "jobs")
    world.run()
    world.start("listen", {"channel": "jobs", "mode": "competing"}, "last")  # what the others left
    world.run()
    got = [each for who in (*(f"c{n}" for n in range(CONSUMERS)), "last") for each in world.output(who)]
    expected = sent + [[f"t{t}", n] for t in range(2) for n in range(MESSAGES)]
    assert Counter(map(tuple, got)) == Counter(map(tuple, expected)), f"seed {seed}"
    assert not world.items
    assert not world.members
    assert not world.dead_letters
    world.check_projections()


@pytest.mark.parametrize("seed", SEEDS)
def test_broadcast_reaches_all_in_order(seed: int) -> None:
    world = Chaos(seed, follow, listen, talk)
    world.start("listen", {"channel": "news", "mode": "broadcast"}, "l0")
    world.start("follow", {"channel": "news", "got": []}, "l1")
    world.run(until_us=world.now_us + 5_000_000)
    for number in range(2):
        world.start("talk", {"channel": "news", "count": MESSAGES}, f"t{number}")
    outside(world, "news")
    world.run()
    for listener in ("l0", "l1"):
        got = world.output(listener)
        assert of("t0", got) == of("t1", got) == list(range(MESSAGES)), f"seed {seed}"
        assert of("outside", got) == list(range(OUTSIDE)), f"seed {seed}"
    assert world.instances["l1"].run > 3
    assert not world.members
    world.check_projections()


def test_there_was_disorder() -> None:
    world = Chaos(1, listen, talk)
    world.start("listen", {"channel": "news", "mode": "broadcast"}, "l0")
    world.start("talk", {"channel": "news", "count": MESSAGES}, "t")
    world.run()
    assert world.crashes > 3
    world.restart()
    assert world.dropped["duplicate_forward"] > 3
