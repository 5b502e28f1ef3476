"""The core against a world without I/O: what workflows do, live, after crashes at every step, and on replay."""

from __future__ import annotations

import asyncio
from asyncio import as_completed
from itertools import pairwise
from typing import Any

import pytest

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine.inputs import Received, Refused
from romancy_stream.errors import RetryExhaustedError, TerminalError
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import workflow
from tests.engine.world import START_US, World


@activity
async def double(value: int) -> int:
    raise AssertionError("activities run in workers")


@activity
async def fail(message: str) -> None:
    raise AssertionError("activities run in workers")


def doubled(_: dict[str, str], args: list[Any]) -> Any:
    return args[0] * 2


ANSWERS = {"double": doubled}


@workflow
async def steps(ctx: WorkflowContext, value: int) -> int:
    for _ in range(3):
        value = await double(value)
    return value


@workflow
async def everything(ctx: WorkflowContext, value: int) -> dict[str, Any]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    done = asyncio.Event()

    async def consumer() -> int:
        total = 0
        while (item := await queue.get()) != 0:
            total += await double(item)
        done.set()
        return total

    async with asyncio.TaskGroup() as group:
        consuming = group.create_task(consumer())
        for item in (1, 2, 3, 0):
            await ctx.sleep(0.5)
            queue.put_nowait(item)
        await done.wait()
    gathered = await asyncio.gather(double(10), double(11), double(12))
    ordered = [await each for each in as_completed([double(n) for n in range(5)])]
    finished, _ = await asyncio.wait([asyncio.ensure_future(double(n)) for n in range(5)])
    try:
        async with asyncio.timeout(1):
            await asyncio.sleep(60)
    except TimeoutError:
        late = True
    waited = await asyncio.wait_for(double(9), timeout=30)
    ctx.publish_event(type="counted", data={"value": value})
    return {
        "consumed": consuming.result(),
        "gathered": gathered,
        "ordered": ordered,
        "finished": sorted(task.result() for task in finished),
        "late": late,
        "waited": waited,
        "uuid": str(ctx.uuid()),
        "random": ctx.random.random(),
        "now": ctx.now().isoformat(),
    }


@pytest.mark.parametrize("restarts", [False, True])
def test_three_steps(restarts: bool) -> None:
    world = World(steps, answers=ANSWERS)
    world.start("steps", 5)
    world.run(restarts=restarts)
    assert world.output() == 40
    assert world.kinds() == [
        "workflow.started",
        "activity.scheduled double:1",
        "activity.completed double:1",
        "activity.scheduled double:2",
        "activity.completed double:2",
        "activity.scheduled double:3",
        "activity.completed double:3",
        "workflow.completed",
    ]
    assert [event.type for event in world.events] == [w.STARTED, w.COMPLETED]
    world.check_projections()


def test_asyncio_in_workflow_code_is_the_same_live_after_crashes_and_with_a_tiny_cache() -> None:
    worlds = [
        World(everything, answers=ANSWERS),
        World(everything, answers=ANSWERS),
        World(everything, answers=ANSWERS, cached=0),
    ]
    for world, restarts in zip(worlds, (False, True, False), strict=True):
        world.start("everything", 7)
        world.run(restarts=restarts)
        world.check_projections()
    live = worlds[0]
    assert live.output()["consumed"] == 12
    assert live.output()["gathered"] == [20, 22, 24]
    assert live.output()["ordered"] == [0, 2, 4, 6, 8]
    assert live.output()["late"] is True
    assert live.history["i"] == worlds[1].history["i"] == worlds[2].history["i"]
    assert not live.timers
    assert live.core.cached == 0


def test_ids_count_per_activity_name_and_manual_ids_are_kept() -> None:
    @workflow
    async def ids(ctx: WorkflowContext) -> None:
        await asyncio.gather(double(1), double.with_options(activity_id="mine")(2), double(3))
        await double.with_options(activity_id="double:3")(4)
        await double(5)

    world = World(ids, answers=ANSWERS)
    world.start("ids")
    world.run(restarts=True)
    assert [each for each, *_ in world.attempts] == ["double:1", "mine", "double:2", "double:3", "double:4"]


def test_a_duplicate_manual_id_fails_the_call_at_once() -> None:
    @workflow
    async def twice(ctx: WorkflowContext) -> None:
        same = double.with_options(activity_id="same")
        await same(1)
        await same(2)

    world = World(twice, answers=ANSWERS)
    world.start("twice")
    world.run()
    assert world.error()["type"].endswith("DuplicateActivityIdError")
    assert len(world.attempts) == 1


def broken(_: dict[str, str], args: list[Any]) -> Any:
    raise ConnectionError(args[0])


@pytest.mark.parametrize("restarts", [False, True])
def test_five_attempts_after_1_2_4_and_8_seconds(restarts: bool) -> None:
    @workflow
    async def pay(ctx: WorkflowContext) -> Any:
        try:
            await fail("no route")
        except RetryExhaustedError as error:
            return [error.attempts, type(error.__cause__).__name__, str(error.__cause__)]

    world = World(pay, answers={"fail": broken})
    world.start("pay")
    world.run(restarts=restarts)
    assert world.output() == [5, "ConnectionError", "no route"]
    times = [when for _, _, when in world.attempts]
    gaps = [round((after - before) / 1_000_000) for before, after in pairwise(times)]
    assert gaps == [1, 2, 4, 8]
    attempts = [event for event in world.history["i"] if event.kind == "activity.attempt_failed"]
    assert [event.attrs["attempt"] for event in attempts] == [1, 2, 3, 4]
    assert b"no route" in (attempts[0].payload or b"")
    world.check_projections()


def test_unlimited_attempts_go_on() -> None:
    @workflow
    async def keep(ctx: WorkflowContext) -> None:
        await fail.with_options(retry=RetryPolicy(max_attempts=0, max_interval=1.0))("x")

    world = World(keep, answers={"fail": lambda h, a: broken(h, a) if int(h[w.X_ATTEMPT]) < 40 else None})
    world.start("keep")
    world.run()
    assert world.output() is None
    assert len(world.attempts) == 40


def terminal(_: dict[str, str], args: list[Any]) -> Any:
    raise TerminalError(args[0])


def test_a_terminal_error_is_not_retried_and_keeps_its_class() -> None:
    @workflow
    async def validate(ctx: WorkflowContext) -> str:
        try:
            await fail("not an order")
        except TerminalError as error:
            return f"terminal: {error}"
        return "?"

    world = World(validate, answers={"fail": terminal})
    world.start("validate")
    world.run(restarts=True)
    assert world.output() == "terminal: not an order"
    assert len(world.attempts) == 1


def test_except_exception_does_not_swallow_an_eviction() -> None:
    swallowed: list[Exception] = []

    @workflow
    async def stubborn(ctx: WorkflowContext) -> int:
        while True:
            try:
                await ctx.sleep(5)
                return await double(4)
            except Exception as error:
                swallowed.append(error)
                await double(99)
            finally:
                await double(1)

    world = World(stubborn, answers=ANSWERS)
    world.start("stubborn")
    world.run(restarts=True)
    assert world.output() == 8
    assert [each for each, *_ in world.attempts] == ["double:1", "double:2"]
    assert not swallowed


# -- total timeout: who was first decides -------------------------------------------------------------------------
@workflow
async def limited(ctx: WorkflowContext) -> str:
    from romancy_stream.errors import ActivityTimeoutError

    try:
        return f"result {await double.with_options(total_timeout=10)(1)}"
    except ActivityTimeoutError as error:
        return f"timeout: {error}"


@pytest.mark.parametrize("worker_first", [False, True])
def test_total_timeout_and_a_worker_that_commits_late(worker_first: bool) -> None:
    from romancy_stream.engine.commit import ActivityKey, RecordedResult

    world = World(limited)
    world.start("limited")
    world.step()
    key = ActivityKey("i", 1, "double:1")
    if worker_first:
        world.results[key] = RecordedResult(key, 1, "completed", b"2", "w", world.now_us)
    world.run(restarts=True)
    expected = "result 2" if worker_first else "timeout: "
    assert world.output().startswith(expected)
    assert world.results[key].outcome == ("completed" if worker_first else "closed")
    world.check_projections()


# -- starting -----------------------------------------------------------------------------------------------------
def test_the_same_start_again_changes_nothing() -> None:
    world = World(steps, answers=ANSWERS)
    event = world.start("steps", 1)
    world.send(event)
    world.run()
    world.send(event)
    world.run()
    assert len(world.history["i"]) == 8
    assert world.core.stats["duplicate_start"] == 2
    assert not world.dead_letters


def test_on_conflict_fail_rejects_a_second_start_only() -> None:
    world = World(steps, answers=ANSWERS)
    first = world.start("steps", 1, **{w.X_CONFLICT: "fail"})
    world.send(first)
    second = world.start("steps", 2, **{w.X_CONFLICT: "fail"})
    world.run()
    rejected = [event for event in world.events if event.type == w.REJECTED]
    assert [event.extensions[w.X_CAUSATION] for event in rejected] == [second.id]
    assert world.output() == 8


def test_a_start_without_a_subject_is_forwarded_once_to_the_partition_of_its_derived_id() -> None:
    world = World(steps, answers=ANSWERS, partitions=8)
    for _ in range(20):
        event = world.start("steps", 1, instance_id=None)
        world.send(event)  # the producer sends it twice
    world.run()
    assert len(world.instances) == 20
    assert {row.status for row in world.instances.values()} == {"completed"}
    assert len({row.part for row in world.instances.values()}) > 1
    assert any(row.topic == "shop.results" for row in world.outbox), "nothing was forwarded"
    assert not world.dead_letters
    world.check_projections()


def test_a_forwarded_message_that_comes_twice_is_known_by_its_origin() -> None:
    world = World(steps, answers=ANSWERS, partitions=8)
    for _ in range(8):
        world.start("steps", 1, instance_id=None)
    world.step()
    forwarded = list(world.pending)
    assert forwarded
    world.run()
    world.pending += forwarded
    world.run()
    assert world.core.stats["duplicate_forward"] == len(forwarded)
    assert len(world.instances) == 8


def test_an_origin_on_commands_is_not_believed() -> None:
    world = World(steps, answers=ANSWERS)
    world.start("steps", 1, "a", **{w.X_ORIGIN: "0:999999"})
    world.start("steps", 1, "b", **{w.X_ORIGIN: "0:1"})
    world.run()
    assert set(world.instances) == {"a", "b"}
    assert not world.watermarks


def test_invalid_input_is_rejected_once_and_the_id_stays_free() -> None:
    world = World(steps, answers=ANSWERS)
    event = world.start("steps", {"not": "an int"})
    world.send(event)
    world.run()
    world.send(event)
    world.run()
    [letter] = world.dead_letters
    assert letter.reason == "invalid_input"
    assert world.rejections["i"].event_id == event.id
    assert len([e for e in world.events if e.type == w.REJECTED]) == 1
    assert not world.instances
    world.start("steps", 3)
    world.run()
    assert world.output() == 24
    assert not world.rejections


def test_an_unknown_workflow_is_rejected() -> None:
    world = World(steps)
    world.start("nobody")
    world.run()
    assert world.rejections["i"].reason == "unknown_workflow"
    assert "steps" in world.rejections["i"].message


def test_events_start_only_workflows_that_ask_for_it() -> None:
    @workflow(event_handler=True)
    async def order_placed(ctx: WorkflowContext, order: dict[str, Any]) -> Any:
        return order["id"]

    world = World(order_placed, steps, event_ttl_s=0)
    for kind in ("order_placed", "steps", "something.else"):
        world.send(WireEvent(f"e/{kind}", "/shop", kind, "any", b'{"id": 7}', "2026-01-01T00:00:00Z"))
    world.run()
    [row] = world.instances.values()
    assert row.output == b"7"
    assert row.instance_id.startswith("order_placed-")
    assert world.core.stats["unwanted_event"] == 2
    assert not world.dead_letters


def test_bad_messages_become_dead_letters_and_the_rest_goes_on() -> None:
    world = World(steps, answers=ANSWERS)
    world.send(WireEvent("a", "/x", w.START, "i1", b"1", "2026-01-01T00:00:00Z"))  # no workflow named
    world.send(WireEvent("b", "/x", "romancy.workflow.dance", "i1", None, "2026-01-01T00:00:00Z"))
    world.send(WireEvent("c", "/x", w.ACTIVITY_COMPLETED, "i1", b"1", "2026-01-01T00:00:00Z"))
    attributes = {w.X_RUN: "1", w.X_ACTIVITY_ID: "a", w.X_ATTEMPT: "1"}
    unknown = WireEvent("d", "/x", w.ACTIVITY_COMPLETED, "nobody", b"1", "2026-01-01T00:00:00Z", attributes)
    world.send(unknown, topic="results")
    world.start("steps", 1)
    world.run()
    assert [letter.reason for letter in world.dead_letters] == [
        "missing_attribute",
        "unknown_command",
        "wrong_topic",
        "unknown_instance",
    ]
    assert [event.type for event in world.events].count(w.DEAD_LETTER) == 4
    assert world.output() == 8


# -- results that are not wanted ----------------------------------------------------------------------------------
def test_results_of_other_runs_attempts_and_finished_instances_are_dropped() -> None:
    world = World(steps)
    world.start("steps", 1)
    world.step()
    [task] = [row for row in world.outbox if ".tasks." in row.topic]
    world.result(task, 100, romancyrun="2")
    world.result(task, 100, romancyattempt="2")
    world.result(task, 100, romancyactivityid="double:9")
    world.result(task, 2)
    world.result(task, 3)
    world.step()
    assert [event.payload for event in world.history["i"] if event.kind == "activity.completed"] == [b"2"]
    assert world.core.stats["late_result"] == 4


# -- parking ------------------------------------------------------------------------------------------------------
def versions() -> tuple[Any, Any, Any]:
    @workflow(name="flow")
    async def first(ctx: WorkflowContext) -> int:
        a = await double(1)
        await ctx.sleep(10)
        return a + await double(2)

    @workflow(name="flow")
    async def other(ctx: WorkflowContext) -> int:
        await ctx.sleep(10)
        return await double(2)

    @workflow(name="flow")
    async def agreeing(ctx: WorkflowContext) -> int:
        a = await double(1)
        await ctx.sleep(10)
        return a + await double(2) + 100

    return first, other, agreeing


def test_code_that_disagrees_with_history_parks_the_instance_and_a_fix_resumes_it() -> None:
    first, other, agreeing = versions()
    world = World(first, answers=ANSWERS)
    world.start("flow")
    world.run(until_us=START_US)
    world.restart(other)
    world.run(restarts=True)
    row = world.instances["i"]
    assert row.status == "running"
    assert "activity.scheduled double:1" in (row.parked or "")
    before = list(world.history["i"])
    world.restart(agreeing)
    world.run(restarts=True)
    assert world.history["i"][: len(before)] == before
    assert world.output() == 106
    assert "workflow.resumed" in world.kinds()
    world.check_projections()


def test_a_loop_that_never_waits_parks_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("romancy_stream.engine.loop.STEP_LIMIT", 5_000)

    @workflow(name="flow")
    async def spinning(ctx: WorkflowContext) -> None:
        while True:  # noqa: ASYNC110 - that is the mistake
            await asyncio.sleep(0)

    @workflow(name="flow")
    async def mended(ctx: WorkflowContext) -> str:
        return "mended"

    world = World(spinning)
    world.start("flow")
    world.run()
    assert "sleep(0)" in (world.instances["i"].parked or "")
    world.restart(mended)
    assert world.output() == "mended"
    world.check_projections()


def test_a_workflow_that_is_not_registered_any_more_parks_its_instances() -> None:
    world = World(steps)
    world.start("steps", 1)
    world.step()
    [task] = [row for row in world.outbox if ".tasks." in row.topic]
    definition = world.workflows.pop("steps")
    world.restart()
    world.result(task, 2)
    world.step()
    assert "steps" in (world.instances["i"].parked or "")
    world.answers = ANSWERS
    world.restart(definition)
    world.run()
    assert world.output() == 8


def test_io_in_workflow_code_names_the_remedy() -> None:
    @workflow
    async def reads(ctx: WorkflowContext) -> None:
        await asyncio.to_thread(print)

    world = World(reads)
    world.start("reads")
    world.run()
    assert world.error()["type"].endswith("WorkflowIOError")
    assert "activity" in world.error()["message"]


def test_a_timer_in_the_past_fires_and_later_timers_keep_their_ids() -> None:
    @workflow
    async def late(ctx: WorkflowContext) -> None:
        from datetime import UTC, datetime

        await ctx.sleep_until(datetime(2001, 1, 1, tzinfo=UTC))
        await ctx.sleep(5)

    world = World(late)
    world.start("late")
    world.run(restarts=True)
    assert [kind for kind in world.kinds() if "timer" in kind] == [
        "timer.started timer:1",
        "timer.fired timer:1",
        "timer.started timer:2",
        "timer.fired timer:2",
    ]


def test_publishing_from_workflow_code_is_never_repeated() -> None:
    @workflow
    async def tells(ctx: WorkflowContext) -> None:
        ctx.publish_event(type="told", data={"n": 1})
        await ctx.sleep(1)
        ctx.publish_event(type="told", data={"n": 2}, topic="elsewhere", source="/me", subject="you")
        await ctx.sleep(1)

    world = World(tells)
    world.start("tells")
    world.run(restarts=True)
    told = [event for event in world.events if event.type == "told"]
    assert [event.data for event in told] == [b'{"n":1}', b'{"n":2}']
    assert len({event.id for event in told}) == 2
    assert (told[1].source, told[1].subject) == ("/me", "you")
    assert [row.topic for row in world.outbox if row.topic == "elsewhere"] == ["elsewhere"]


def test_a_message_that_is_set_aside_is_kept_and_nobody_waits_for_it_in_vain() -> None:
    world = World(steps)
    world.start("steps", 1)
    world.step()
    [task] = [row for row in world.outbox if ".tasks." in row.topic]
    world.result(task, 2)
    world.start("steps", 1, "other")
    spoiled = [Refused(Received(each, decode(each)), "refused_by_database", "why") for each in world.pending]
    world.pending = []
    world.step(spoiled)
    assert [letter.reason for letter in world.dead_letters] == ["refused_by_database"] * 2
    assert world.rejections["other"].reason == "refused_by_database"
    assert [event.type for event in world.events].count(w.REJECTED) == 1
    assert world.instances["i"].parked == "refused_by_database: why"
    world.answers = ANSWERS
    world.restart()
    world.result(task, 2)  # the dead letter, replayed
    world.run()
    assert world.output() == 8
    world.check_projections()
