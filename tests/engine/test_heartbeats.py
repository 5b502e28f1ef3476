"""Heartbeats that cease, leases that lapse, and workers that name the time of the next attempt: the engine's part."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine import failure
from romancy_stream.engine import history as h
from romancy_stream.engine.attempts import LOOKS_PER_WAIT
from romancy_stream.engine.commit import ActivityKey, Heartbeat, RecordedResult
from romancy_stream.engine.inputs import EagerRoom, LeaseLapsed
from romancy_stream.errors import RetryExhaustedError, RetryLaterError
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.workflow import workflow
from tests.engine.world import START_US, World

SECOND_US = 1_000_000
KEY = ActivityKey("i", 1, "crunch:1")


@activity(heartbeat_timeout=30, retry=RetryPolicy.fixed(2, 1.0))
async def crunch(value: int) -> int:
    raise AssertionError("activities run in workers")


@workflow
async def crunching(ctx: WorkflowContext, value: int) -> Any:
    try:
        return await crunch(value)
    except RetryExhaustedError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"


class Beating(World):
    """One whose workers beat: `beats` says what of an attempt reaches the table, and when."""

    def __init__(self, **options: Any) -> None:
        super().__init__(crunching, partitions=3, cached=1, **options)
        self.start("crunching", 1)

    def beat(self, attempt: int, at_us: int) -> None:
        self.heartbeats[KEY] = Heartbeat(KEY, attempt, at_us, b'{"row":7}')

    def until(self, at_us: int, *, restarts: bool = True) -> None:
        self.run(restarts=restarts, until_us=at_us)
        self.now_us = max(self.now_us, at_us)

    @property
    def heard(self) -> list[int]:
        return [each.attrs["due_us"] for each in self.history["i"] if each.kind == h.ACTIVITY_HEARD]


def test_the_task_says_how_long_the_worker_may_be_silent() -> None:
    world = Beating()
    world.step()
    (task,) = [dict(row.headers) for row in world.outbox if ".tasks." in row.topic]
    assert task[f"ce_{w.X_HEARTBEAT}"] == "30.0"
    assert world.history["i"][1].attrs["heartbeat_timeout_s"] == 30.0


def test_heartbeats_keep_an_attempt_alive_and_silence_ends_it() -> None:
    world = Beating()
    world.until(START_US + 20 * SECOND_US)
    world.beat(1, START_US + 20 * SECOND_US)
    world.until(START_US + 45 * SECOND_US)
    assert world.heard == [START_US + 50 * SECOND_US]
    world.beat(1, START_US + 44 * SECOND_US)
    world.until(START_US + 60 * SECOND_US)
    assert world.heard[1:] == [START_US + 74 * SECOND_US]
    assert len(world.attempts) == 1
    world.until(START_US + 80 * SECOND_US)  # silent: another attempt a second later
    assert [(attempt, when // SECOND_US - START_US // SECOND_US) for _, attempt, when in world.attempts] == [
        (1, 0),
        (2, 75),
    ]
    (failed,) = [each for each in world.history["i"] if each.kind == h.ACTIVITY_ATTEMPT_FAILED]
    assert failed.attrs["attempt"] == 1
    assert b"silent for its heartbeat_timeout of 30 s" in (failed.payload or b"")
    world.check_projections()


def test_the_last_attempt_that_falls_silent_is_given_up() -> None:
    world = Beating()
    world.until(START_US + SECOND_US)
    world.beat(1, START_US)
    world.until(START_US + 32 * SECOND_US)
    world.beat(2, START_US + 32 * SECOND_US)
    world.run(restarts=True)
    assert world.results[KEY].outcome == "closed"
    assert world.output() == "ActivityTimeoutError: activity crunch:1 was silent for its heartbeat_timeout of 30 s"
    assert [attempt for _, attempt, _ in world.attempts] == [1, 2]
    world.check_projections()


def test_a_result_that_a_worker_was_first_to_record_is_used_whatever_it_did_not_say() -> None:
    world = Beating(policy=RetryPolicy.none())
    world.until(START_US + SECOND_US)
    world.beat(1, START_US)
    world.until(START_US + 32 * SECOND_US)
    world.beat(2, START_US + 32 * SECOND_US)
    world.results[KEY] = RecordedResult(KEY, 2, "completed", b"11", "w1", START_US)
    world.run(restarts=True)
    assert world.output() == 11


def test_what_lies_in_its_queue_is_not_silent() -> None:
    """Nobody has begun it, so nobody beats: it waits as long as it takes, and the log does not fill with that."""
    world = Beating()
    day_us = 86_400 * SECOND_US
    world.until(START_US + day_us)
    assert len(world.attempts) == 1
    assert len(world.heard) < 70
    assert max(b - a for a, b in zip(world.heard, world.heard[1:], strict=False)) <= day_us // LOOKS_PER_WAIT
    world.beat(1, START_US + day_us)
    world.until(START_US + day_us + day_us // 4)  # begun at last, and silent since
    assert [attempt for _, attempt, _ in world.attempts] == [1, 2]
    world.check_projections()


def test_a_heartbeat_of_an_attempt_before_says_nothing_of_this_one() -> None:
    world = Beating()
    world.until(START_US + SECOND_US)
    world.beat(1, START_US)
    world.until(START_US + 70 * SECOND_US)
    assert [attempt for _, attempt, _ in world.attempts] == [1, 2]
    assert world.instances["i"].status == "running"


def test_a_result_in_time_takes_the_timer_along() -> None:
    world = Beating()
    world.answers = {"crunch": lambda _, args: args[0] * 2}
    world.run(restarts=True)
    assert world.output() == 2
    assert not world.timers
    assert world.heard == []


# -- leases ----------------------------------------------------------------------------------------------------
def lapse(world: World, run: int = 1, attempt: int = 1, activity_id: str = "crunch:1", instance: str = "i") -> None:
    world.step([LeaseLapsed(world.part_of(instance), instance, run, activity_id, attempt, "dead-worker")])


def test_an_attempt_whose_worker_is_gone_is_dispatched_again() -> None:
    world = Beating()
    world.step()
    before = world.kinds()
    world.restart()
    lapse(world)
    assert [(each, attempt) for each, attempt, _ in world.attempts] == [("crunch:1", 1), ("crunch:1", 1)]
    first, second = [row for row in world.outbox if ".tasks." in row.topic]
    assert set(second.headers) - set(first.headers) == {
        (f"ce_{w.X_LAPSED}", "dead-worker"),
        *(header for header in second.headers if header[0] == "ce_time"),
    }
    assert second.value == first.value
    assert world.kinds() == before
    assert world.core.stats["dispatched_again"] == 1
    world.result(second, 5)
    world.run(restarts=True)
    assert world.output() == 5


def test_an_attempt_that_another_process_has_now_is_not_of_the_one_that_kept_it() -> None:
    """Else each owner to come would take it for one that nobody has, and dispatch it again."""
    world = Beating()
    world.eager = EagerRoom("dead-worker", {"default"}, 1)
    world.step()
    assert world.activities["i", 1, "crunch:1"].eager == "dead-worker"
    assert not world.attempts
    world.eager = None
    world.restart()
    for count in (1, 2):
        lapse(world)  # the second time by the lease of whoever has it now
        assert [(each, attempt) for each, attempt, _ in world.attempts] == [("crunch:1", 1)] * count
        assert world.activities["i", 1, "crunch:1"].eager is None
        assert world.kinds().count("activity.passed_on crunch:1") == 1
    world.check_projections()
    world.result(next(row for row in world.outbox if ".tasks." in row.topic), 5)
    world.run(restarts=True)
    assert world.output() == 5


@pytest.mark.parametrize(
    "late", [{"run": 2}, {"attempt": 2}, {"activity_id": "crunch:2"}, {"instance": "unknown"}], ids=str
)
def test_a_lapse_of_something_else_is_counted(late: dict[str, Any]) -> None:
    world = Beating()
    world.step()
    lapse(world, **late)
    assert len(world.attempts) == 1
    assert world.core.stats["late_lapse"] == 1


def test_a_lapse_that_comes_when_all_is_over_is_counted() -> None:
    world = Beating()
    world.answers = {"crunch": lambda _, args: args[0]}
    world.run()
    lapse(world)
    assert len(world.attempts) == 1
    assert world.core.stats["late_lapse"] == 1


def test_an_attempt_that_waits_for_its_next_time_is_not_dispatched() -> None:
    world = Beating()
    world.step()
    world.result(next(row for row in world.outbox if ".tasks." in row.topic), error=ConnectionError("no"))
    world.step()
    lapse(world)
    assert len(world.attempts) == 1
    assert world.core.stats["late_lapse"] == 1


# -- not yet -----------------------------------------------------------------------------------------------------
def test_a_worker_names_the_time_of_the_next_attempt() -> None:
    def not_yet(headers: dict[str, str], args: list[Any]) -> int:
        if headers[w.X_ATTEMPT] == "1":
            raise RetryLaterError(90)
        return 7

    world = Beating()
    world.answers = {"crunch": not_yet}
    world.run(restarts=True)
    assert world.output() == 7
    first, second = [when for _, _, when in world.attempts]
    assert 90 * SECOND_US <= second - first < 91 * SECOND_US


@pytest.mark.parametrize("said", [b'{"retry_after_s":-1}', b'{"retry_after_s":true}', b'{"retry_after_s":1e300}', b"1"])
def test_what_is_no_delay_is_left_to_the_policy(said: bytes) -> None:
    assert failure.retry_after_s(said) is None


def test_delays_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="delay must be"):
        RetryLaterError(-1)
    error = failure.decode_error(failure.encode_error(RetryLaterError(2.5), retryable=True))
    assert isinstance(error, RetryLaterError)
    assert (error.delay_s, str(error)) == (2.5, "to be tried again in 2.5 s")
    assert orjson.loads(failure.encode_error(error, retryable=True))["retry_after_s"] == 2.5


def test_priorities_travel_with_the_task() -> None:
    @workflow
    async def urgent(ctx: WorkflowContext) -> int:
        return await crunch.with_options(priority=1)(1)

    world = World(urgent, answers={"crunch": lambda _, args: 1})
    world.start("urgent")
    world.run(restarts=True)
    (task,) = [dict(row.headers) for row in world.outbox if ".tasks." in row.topic]
    assert task[f"ce_{w.X_PRIORITY}"] == "1"
    with pytest.raises(ValueError, match="priority must be"):
        crunch.with_options(priority=0)
