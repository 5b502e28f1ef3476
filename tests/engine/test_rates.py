"""Queues whose attempts begin at a rate, whatever partition asks and whatever crashes."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine import history as h
from romancy_stream.queues import RateLimit
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import workflow
from tests.engine.world import START_US, World

SECOND_US = 1_000_000
RATE = RateLimit(10, per=1.0)


@activity(queue="mail", retry=RetryPolicy.fixed(2, 0.01))
async def send(n: int) -> int:
    raise AssertionError("activities run in workers")


@activity
async def other(n: int) -> int:
    raise AssertionError("activities run in workers")


@workflow
async def mailing(ctx: WorkflowContext, count: int) -> list[int]:
    return list(await asyncio.gather(other(0), *(send(n) for n in range(count))))


def answer(headers: dict[str, str], args: list[Any]) -> int:
    return int(args[0])


class Rated(World):
    def __init__(self, **options: Any) -> None:
        queue_rates = {"mail": RATE.every_us}
        super().__init__(mailing, **{"partitions": 3, "cached": 1, "queue_rates": queue_rates, **options})

    def begun(self, activity_name: str = "send") -> list[int]:
        return sorted(when for ref, _, when in self.attempts if ref.startswith(activity_name))


def spaced(times: list[int]) -> bool:
    return all(later - earlier >= RATE.every_us - 5_000 for earlier, later in itertools.pairwise(times))


def test_attempts_of_all_partitions_begin_one_after_the_other() -> None:
    world = Rated(answers={"send": answer, "other": answer})
    for n in range(6):
        world.start("mailing", 5, f"i{n}")
    world.run(restarts=True)
    assert [world.output(f"i{n}") for n in range(6)] == [[0, *range(5)]] * 6
    times = world.begun()
    assert len(times) == 30
    assert spaced(times)
    assert times[-1] - times[0] < 3.5 * SECOND_US  # nor does anything wait for longer
    assert max(world.begun("other")) < START_US + SECOND_US // 10
    assert not world.timers
    assert list(world.entities) == ["rate:mail"]
    world.check_projections()


def test_retries_wait_for_their_time_as_well() -> None:
    def stumble(headers: dict[str, str], args: list[Any]) -> int:
        if headers[w.X_ATTEMPT] == "1":
            raise ConnectionError("no")
        return int(args[0])

    world = Rated(answers={"send": stumble, "other": answer})
    world.start("mailing", 4)
    world.run(restarts=True)
    assert world.output() == [0, 0, 1, 2, 3]
    assert len(world.begun()) == 8
    assert spaced(world.begun())


def test_who_was_alone_begins_at_once_and_leaves_no_event() -> None:
    world = Rated(answers={"send": answer, "other": answer})
    world.start("mailing", 1)
    world.run(restarts=True)
    assert h.ACTIVITY_DEFERRED not in {event.kind for event in world.history["i"]}


def test_a_time_that_comes_when_nobody_waits_for_it_is_lost() -> None:
    world = Rated(answers={"other": answer})
    world.start("mailing", 3)
    world.run(until_us=START_US + 50_000)
    assert len(world.begun()) == 1
    world.send(WireEvent("c", "/test", w.CANCEL, "i", b"{}", "2026-01-01T00:00:00Z"), world.part_of("i"))
    world.run(restarts=True)
    assert world.instances["i"].status == "cancelled"
    assert len(world.begun()) == 1
    assert not world.timers


def test_a_run_that_is_sent_back_asks_once() -> None:
    world = Rated(answers={"other": answer})
    world.start("mailing", 3)
    world.run(until_us=START_US + 50_000)
    world.send(WireEvent("r", "/test", w.RESET, "i", b"{}", "2026-01-01T00:00:00Z"), world.part_of("i"))
    world.run(restarts=True)
    assert world.instances["i"].run == 2
    times = world.begun()
    assert len(times) == 4  # one of the first run, three of the second
    assert spaced(times)


def test_a_process_without_the_rate_does_not_ask() -> None:
    world = Rated(answers={"send": answer, "other": answer}, queue_rates={})
    world.start("mailing", 20)
    world.run()
    assert not world.entities
    assert max(world.begun()) < START_US + SECOND_US // 10
