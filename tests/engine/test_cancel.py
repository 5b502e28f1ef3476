"""Cancelling an instance, and single activities by its own code: live, after crashes before each step, evicted, parked,
and from old histories."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine import projection
from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.engine.failure import workflow_cancelled
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.instance import LiveInstance, replay
from romancy_stream.engine.loop import stepping_aside
from romancy_stream.engine.saga import REASON_CHARS
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import Workflow, workflow
from tests.engine.world import World

CRASHES = [
    pytest.param({}, False, id="live"),
    pytest.param({}, True, id="crashes"),
    pytest.param({"cached": 0}, False, id="evicted"),
    pytest.param({"partitions": 8, "cached": 1}, True, id="partitions"),
]


@activity
async def slow(value: int = 0) -> int:
    raise AssertionError("activities run in workers")


@activity
async def tidy(what: str) -> str:
    raise AssertionError("activities run in workers")


def tidied(_: dict[str, str], args: list[Any]) -> str:
    return f"tidied {args[0]}"


ANSWERS = {"tidy": tidied}


def cancel(world: World, instance_id: str = "i", reason: Any = "enough", **changed: Any) -> WireEvent:
    data = changed.pop("data", orjson.dumps({"reason": reason}))
    id_ = changed.pop("id", f"cancel-{len(world.outbox)}-{len(world.pending)}")
    event = WireEvent(id_, "/desk", w.CANCEL, instance_id, data, "2026-01-01T00:00:00Z", {})
    world.send(event, world.part_of(instance_id))
    return event


def answers(world: World) -> list[Any]:
    return [orjson.loads(event.data or b"") for event in world.events if event.type == w.ANSWERED]


def cancelled(world: World, instance_id: str = "i") -> Any:
    row = world.instances[instance_id]
    assert row.status == "cancelled", (row.status, row.error, row.parked)
    return orjson.loads(row.error or b"")


@workflow
async def waits_for_an_activity(ctx: WorkflowContext) -> int:
    return await slow()


@workflow
async def sleeps(ctx: WorkflowContext) -> None:
    await ctx.sleep(3_600)


@workflow
async def gathers(ctx: WorkflowContext) -> None:
    async with asyncio.TaskGroup() as group:
        for value in range(3):
            group.create_task(slow(value))
        await ctx.sleep(3_600)


ENDS: dict[str, tuple[Workflow[Any, Any], list[str]]] = {
    "activity": (waits_for_an_activity, ["activity.cancelled slow:1"]),
    "timer": (sleeps, ["timer.cancelled timer:1"]),
    "group": (gathers, ["timer.cancelled timer:1", *(f"activity.cancelled slow:{n}" for n in (1, 2, 3))]),
}


# -- instances ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ENDS)
@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_a_waiting_instance_ends_and_keeps_the_reason_and_who_asked(
    what: str, options: dict[str, Any], restarts: bool
) -> None:
    code, ends = ENDS[what]
    world = World(code, **options)
    world.start(code.name)
    world.step()
    cancel(world, reason="customer called")
    world.run(restarts=restarts)
    assert world.kinds()[-len(ends) - 2 :] == ["workflow.cancel_requested", *ends, "workflow.cancelled"]
    assert cancelled(world) == {"reason": "customer called", "by": "/desk"}
    assert answers(world) == [{"ok": True}]
    [told] = [event for event in world.events if event.type == w.CANCELLED]
    assert orjson.loads(told.data or b"") == {"reason": "customer called", "by": "/desk"}
    assert not world.timers
    assert not world.dead_letters
    assert {key.activity_id for key in world.results} == {end.split()[1] for end in ends if "activity" in end}
    world.check_projections()


def test_cancel_does_not_lose_its_reason() -> None:
    world = World(sleeps)
    world.start("sleeps")
    world.step()
    command = cancel(world, reason="because")
    world.run()
    [requested] = [event for event in world.history["i"] if event.kind == "workflow.cancel_requested"]
    assert requested.attrs == {"reason": "because", "by": "/desk", "event_id": command.id}
    error = workflow_cancelled("i", world.instances["i"].error)
    assert (error.reason, error.by, error.compensation_failed) == ("because", "/desk", [])
    assert "because" in str(error)


@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_finally_may_await_activities(options: dict[str, Any], restarts: bool) -> None:
    @workflow
    async def cleans(ctx: WorkflowContext) -> None:
        try:
            await slow()
        except Exception:
            raise AssertionError("a cancellation is no Exception") from None
        finally:
            await asyncio.gather(tidy("a"), tidy("b"))
            ctx.publish_event(type="cleaned", data=await tidy("c"))

    world = World(cleans, answers=ANSWERS, **options)
    world.start("cleans")
    world.step()
    cancel(world)
    world.run(restarts=restarts)
    assert cancelled(world)["reason"] == "enough"
    assert [event.data for event in world.events if event.type == "cleaned"] == [b'"tidied c"']
    assert [each for each, *_ in world.attempts] == ["slow:1", "tidy:1", "tidy:2", "tidy:3"]
    world.check_projections()


def test_except_exception_does_not_swallow_a_cancellation_but_code_may_catch_it() -> None:
    @workflow
    async def goes_on(ctx: WorkflowContext) -> str:
        try:
            try:
                await ctx.sleep(3_600)
            except Exception as error:
                raise AssertionError("not an Exception") from error
        except asyncio.CancelledError as error:
            told = str(error)
        return f"{told}: {await slow()}"

    world = World(goes_on)
    world.start("goes_on")
    world.step()
    cancel(world, reason="stop it")
    world.step()
    cancel(world, reason="stop it again")
    world.run(restarts=True)
    world.result(next(row for row in world.outbox if ".tasks." in row.topic), 5)
    world.run(restarts=True)
    assert world.output() == "stop it: 5"
    assert [event.kind for event in world.history["i"]].count("workflow.cancel_requested") == 1
    assert answers(world) == [{"ok": True}, {"ok": True}]


def test_an_error_in_the_cleanup_is_a_failure() -> None:
    @workflow
    async def breaks(ctx: WorkflowContext) -> None:
        try:
            await ctx.sleep(3_600)
        finally:
            raise RuntimeError("broken broom")

    world = World(breaks)
    world.start("breaks")
    world.step()
    cancel(world)
    world.run(restarts=True)
    assert world.error()["message"] == "broken broom"


def test_code_that_cancels_itself_has_failed_as_before() -> None:
    @workflow
    async def gives_up(ctx: WorkflowContext) -> None:
        raise asyncio.CancelledError

    world = World(gives_up)
    world.start("gives_up")
    world.run()
    assert world.error()["type"].endswith("CancelledError")


def test_cancelling_twice_is_no_error_and_a_command_that_comes_again_counts_once() -> None:
    world = World(sleeps)
    world.start("sleeps")
    world.step()
    command = cancel(world)
    world.send(command)
    cancel(world, reason="later")
    world.run()
    cancel(world, reason="much later")
    world.run(restarts=True)
    assert cancelled(world)["reason"] == "enough"
    assert answers(world) == [{"ok": True}] * 3
    assert world.core.stats["duplicate_message"] == 0  # the process that saw it is gone
    assert not world.dead_letters


@pytest.mark.parametrize("restarts", [False, True])
def test_finished_and_unknown_instances_are_refused(restarts: bool) -> None:
    @workflow
    async def done(ctx: WorkflowContext) -> int:
        return 1

    world = World(done, partitions=3)
    world.start("done")
    cancel(world)  # in the same batch
    world.run(restarts=restarts)
    cancel(world)
    cancel(world, "nobody")
    world.run(restarts=restarts)
    assert world.output() == 1
    codes = [answer["error"]["type"].rpartition(":")[2] for answer in answers(world)]
    assert sorted(codes) == ["InstanceNotCancellableError", "InstanceNotCancellableError", "InstanceNotFoundError"]
    assert sorted(letter.reason for letter in world.dead_letters) == [
        "not_cancellable",
        "not_cancellable",
        "unknown_instance",
    ]


@pytest.mark.parametrize("data", [None, b"null", b"{}", b'{"reason":null}', b'{"why":1}'])
def test_the_reason_is_optional(data: bytes | None) -> None:
    world = World(sleeps)
    world.start("sleeps")
    world.step()
    cancel(world, data=data)
    world.run()
    assert cancelled(world) == {"reason": None, "by": "/desk"}


@pytest.mark.parametrize("data", [b'"text"', b'{"reason":5}', b"[]", b"5"])
def test_a_reason_that_is_no_text_is_a_dead_letter(data: bytes) -> None:
    world = World(sleeps)
    world.start("sleeps")
    world.step()
    cancel(world, data=data)
    world.step()
    assert [letter.reason for letter in world.dead_letters] == ["invalid_input"]
    assert world.instances["i"].status == "waiting_for_timer"
    assert "error" in answers(world)[0]


def test_a_long_reason_is_cut() -> None:
    world = World(sleeps)
    world.start("sleeps")
    world.step()
    cancel(world, reason="x" * 10_000)
    world.run()
    assert len(cancelled(world)["reason"]) == REASON_CHARS


def test_a_command_without_a_subject_or_in_a_wrong_partition() -> None:
    world = World(sleeps, partitions=4)
    world.start("sleeps")
    world.step()
    command = WireEvent("c", "/desk", w.CANCEL, "i", b'{"reason":"lost"}', "2026-01-01T00:00:00Z", {})
    world.send(command, (world.part_of("i") + 1) % 4)
    world.send(WireEvent("d", "/desk", w.CANCEL, None, None, "2026-01-01T00:00:00Z", {}), 0)
    world.run(restarts=True)
    assert cancelled(world)["reason"] == "lost"
    assert [letter.reason for letter in world.dead_letters] == ["missing_attribute"]


def test_a_parked_instance_is_cancelled_without_its_code() -> None:
    touched = []

    @workflow(name="sleeps")
    async def other_code(ctx: WorkflowContext) -> None:
        try:
            await slow()
        finally:
            touched.append(ctx.is_replaying)

    world = World(waits_for_an_activity)
    world.start("waits_for_an_activity")
    world.step()
    world.workflows["waits_for_an_activity"] = sleeps  # diverges
    world.restart()
    world.result(world.outbox[-1], 5)
    world.step()
    assert world.instances["i"].parked is not None
    cancel(world, reason="hopeless")
    world.run(restarts=True)
    assert cancelled(world) == {"reason": "hopeless", "by": "/desk"}
    assert world.kinds()[-2:] == ["workflow.cancel_requested", "workflow.cancelled"]
    assert answers(world) == [{"ok": True}]
    assert not touched
    world.check_projections()


def test_an_instance_whose_code_diverges_when_it_is_cancelled_ends_all_the_same() -> None:
    world = World(waits_for_an_activity)
    world.start("waits_for_an_activity")
    world.step()
    world.workflows["waits_for_an_activity"] = sleeps
    world.restart()
    cancel(world)
    world.run()
    assert cancelled(world)["reason"] == "enough"
    assert world.kinds()[-3:] == ["workflow.cancel_requested", "workflow.parked", "workflow.cancelled"]
    assert ActivityKey("i", 1, "slow:1") in world.results


def test_a_request_in_a_parked_instance_is_heard_when_it_runs_again() -> None:
    """Parked after it was asked, by code that is replaced: the cancellation is not asked for a second time."""

    @workflow(name="cleans")
    async def cleans(ctx: WorkflowContext) -> None:
        try:
            await ctx.sleep(3_600)
        finally:
            await slow()

    world = World(cleans)
    world.start("cleans")
    world.step()
    cancel(world)
    world.step()
    world.workflows["cleans"] = sleeps
    world.restart()
    world.result(next(row for row in world.outbox if ".tasks." in row.topic), 1)
    world.step()
    assert world.instances["i"].parked is not None
    world.restart(cleans)
    world.run()
    assert cancelled(world)["reason"] == "enough"
    assert world.kinds()[-2:] == ["workflow.resumed", "workflow.cancelled"]


def test_a_start_and_its_cancellation_in_one_batch() -> None:
    world = World(waits_for_an_activity)
    world.start("waits_for_an_activity")
    cancel(world)
    world.step()
    assert world.kinds() == [
        "workflow.started",
        "activity.scheduled slow:1",
        "workflow.cancel_requested",
        "activity.cancelled slow:1",
        "workflow.cancelled",
    ]
    world.check_projections()


@pytest.mark.parametrize("restarts", [False, True])
def test_an_instance_that_has_not_begun_is_cancelled_before_its_code_runs(restarts: bool) -> None:
    ran = []

    @workflow
    async def later(ctx: WorkflowContext) -> None:
        ran.append(ctx.run)

    world = World(later)
    world.start("later", **{w.X_BEGIN: "2026-01-01T00:00:00Z"})
    world.step()
    cancel(world)
    world.run(restarts=restarts)
    assert cancelled(world)["reason"] == "enough"
    assert not ran


def test_the_next_run_of_an_instance_is_not_cancelled_by_a_request_to_the_one_before() -> None:
    @workflow
    async def recurs(ctx: WorkflowContext, left: int) -> int:
        try:
            await ctx.sleep(3_600)
        except asyncio.CancelledError:
            await ctx.recur(left - 1)
        return left

    world = World(recurs)
    world.start("recurs", 2)
    world.step()
    cancel(world)
    world.run(restarts=True)
    assert world.instances["i"].run == 2
    assert world.output() == 1


# -- activities --------------------------------------------------------------------------------------------------------
@workflow
async def times_out(ctx: WorkflowContext) -> str:
    try:
        async with asyncio.timeout(5):
            await slow()
    except TimeoutError:
        return await tidy("late")
    return "in time"


@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_an_activity_whose_time_is_over_is_recorded_as_cancelled(options: dict[str, Any], restarts: bool) -> None:
    world = World(times_out, answers=ANSWERS, **options)
    world.start("times_out")
    world.run(restarts=restarts)
    assert world.output() == "tidied late"
    assert world.kinds()[3:5] == ["timer.fired timer:1", "activity.cancelled slow:1"]
    assert world.activities["i", 1, "slow:1"].status == "cancelled"
    assert world.results[ActivityKey("i", 1, "slow:1")].outcome == "closed"
    world.check_projections()


def test_a_late_result_is_dropped_and_counted() -> None:
    world = World(times_out)
    world.start("times_out")
    world.step()
    world.run(until_us=world.now_us + 6_000_000)
    late = next(row for row in world.outbox if ".tasks." in row.topic)
    world.result(late, 1)
    world.result(late, error=RuntimeError("late"))
    world.step()
    assert world.core.stats["late_result"] == 2
    assert [event.kind for event in world.history["i"]].count("activity.completed") == 0


def test_a_worker_that_was_first_keeps_its_row() -> None:
    world = World(times_out, answers=ANSWERS)
    world.start("times_out")
    world.step()
    key = ActivityKey("i", 1, "slow:1")
    world.results[key] = RecordedResult(key, 1, "completed", b"7", "w", 1)
    world.run()
    assert world.results[key].outcome == "completed"
    assert world.output() == "tidied late"  # its code had decided


def _first_wins(ctx: WorkflowContext) -> Any:
    return asyncio.wait(
        {asyncio.ensure_future(slow(1)), asyncio.ensure_future(tidy("x"))}, return_when="FIRST_COMPLETED"
    )


@workflow
async def races(ctx: WorkflowContext) -> str:
    done, pending = await _first_wins(ctx)
    for task in pending:
        task.cancel()
    return str(done.pop().result())


@workflow
async def group_fails(ctx: WorkflowContext) -> str:
    async def breaks() -> None:
        await tidy("x")
        raise KeyError("broken")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(slow(1))
            group.create_task(slow(2))
            group.create_task(breaks())
    except* KeyError:
        pass
    return await tidy("rest")


@workflow
async def never_sent(ctx: WorkflowContext) -> str:
    task = asyncio.ensure_future(slow(1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    return await tidy("y")


CANCELS: dict[str, tuple[Workflow[Any, Any], list[str]]] = {
    "race": (races, ["slow:1"]),
    "group": (group_fails, ["slow:1", "slow:2"]),
    "same step": (never_sent, []),
}


@pytest.mark.parametrize("case", CANCELS)
@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_activities_that_code_cancels(case: str, options: dict[str, Any], restarts: bool) -> None:
    code, refs = CANCELS[case]
    world = World(code, answers=ANSWERS, **options)
    world.start(code.name)
    world.run(restarts=restarts)
    assert world.instances["i"].status == "completed", world.instances["i"]
    ended = [event.ref for event in world.history["i"] if event.kind == "activity.cancelled"]
    if case == "race":  # the code was over before anything else could happen
        assert ended in ([], refs)
    else:
        assert ended == refs
    assert {key.activity_id for key in world.results} == set(ended)
    world.check_projections()
    peace = World(code, answers=ANSWERS)
    peace.start(code.name)
    peace.run()
    assert world.kinds() == peace.kinds()


def test_an_activity_that_was_cancelled_before_anybody_saw_it_leaves_no_trace() -> None:
    world = World(never_sent, answers=ANSWERS)
    world.start("never_sent")
    world.run(restarts=True)
    assert world.kinds()[1] == "activity.scheduled tidy:1"
    assert [each for each, *_ in world.attempts] == ["tidy:1"]


def test_eviction_cancels_nothing() -> None:
    world = World(gathers, group_fails, answers=ANSWERS)
    world.start("gathers", instance_id="i")
    world.start("group_fails", instance_id="j")
    world.step()
    before = {name: list(events) for name, events in world.history.items()}
    for _ in range(3):
        world.restart()
        world.step()
    assert world.history["i"] == before["i"]
    assert [event.kind for event in world.history["j"]].count("activity.cancelled") == 2  # its own doing


def test_code_that_was_parked_may_cancel_what_has_ended_meanwhile() -> None:
    """It hears of the timer first and gives the activity up; history knows its result by then."""
    world = World(times_out, answers=ANSWERS)
    world.start("times_out")
    world.step()
    world.workflows["times_out"] = sleeps
    world.restart()
    world.now_us += 6_000_000
    world.step()
    assert world.instances["i"].parked is not None
    world.result(next(row for row in world.outbox if ".tasks." in row.topic), 1)
    world.step()
    world.restart(times_out)
    world.run(restarts=True)
    assert world.output() == "tidied late"
    assert world.activities["i", 1, "slow:1"].status == "completed"
    world.check_projections()


def test_an_old_history_in_which_a_cancelled_activity_stayed_open_still_replays() -> None:
    world = World(times_out, answers=ANSWERS)
    world.start("times_out")
    world.run()
    old: list[HistoryEvent] = []
    for event in world.history["i"]:
        attrs = {name: value for name, value in event.attrs.items() if name != "rules"}
        if event.kind != "activity.cancelled":
            old.append(HistoryEvent("i", 1, len(old) + 1, event.at_us, event.kind, event.ref, attrs, event.payload))
    live = LiveInstance(times_out, "i", 1, RetryPolicy())
    with stepping_aside():
        assert replay(live, old) == []
        live.evict()
    assert projection.fold(old, 0).status == "completed"


def test_ten_thousand_activities_are_cancelled_in_one_step() -> None:
    count = 10_000

    @workflow
    async def many(ctx: WorkflowContext) -> None:
        await asyncio.gather(*(slow(value) for value in range(count)))

    world = World(many)
    world.start("many")
    world.step()
    cancel(world)
    world.step()
    assert [event.kind for event in world.history["i"]].count("activity.cancelled") == count
    assert cancelled(world)
