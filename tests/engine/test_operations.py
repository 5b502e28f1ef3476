"""Retry, reset, fork and delete: another run that begins with a copy of what was, or none any more."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from romancy_stream import RetryPolicy, TerminalError, activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine.inputs import Outlived
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import workflow
from tests.engine.world import World

TIME = "2026-01-01T00:00:00Z"


@activity(retry=RetryPolicy.none())
async def charge(order_id: str) -> str:
    raise AssertionError("activities run in workers")


@activity
async def ship(order_id: str) -> str:
    raise AssertionError("activities run in workers")


@workflow
async def order(ctx: WorkflowContext, order_id: str) -> list[str]:
    first = await charge(order_id)
    await ctx.sleep(60)
    return [first, await ship(order_id)]


def world(**answers: Any) -> World:
    return World(
        order, answers={"charge": lambda _, args: f"charged {args[0]}", "ship": lambda *_: "shipped", **answers}
    )


def command(here: World, type_: str, instance_id: str = "i", **extensions: str) -> dict[str, Any]:
    """Sends it and returns the answer."""
    event = WireEvent(f"{type_}-{len(here.events)}", "/operator", type_, instance_id, None, TIME, extensions)
    here.send(event, here.part_of(instance_id))
    here.run()
    [answer] = [e for e in here.events if e.type == w.ANSWERED and e.extensions[w.X_CAUSATION] == event.id]
    told: dict[str, Any] = orjson.loads(answer.data or b"")
    return told


def error_of(answer: dict[str, Any]) -> str:
    assert answer["ok"] is False
    return str(answer["error"]["type"]).rpartition(":")[2]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_retry_tries_the_activity_anew_that_failed(restarts: bool) -> None:
    broken = True

    def shipping(*_: Any) -> str:
        if broken:
            raise TerminalError("no van")
        return "shipped"

    here = world(ship=shipping)
    here.start("order", "o1")
    here.run(restarts=restarts)
    assert here.error()["message"] == "no van"
    broken = False
    if restarts:
        here.restart()
    assert command(here, w.RETRY) == {"ok": True, "run": 2}
    assert here.output() == ["charged o1", "shipped"]
    assert [name for name, *_ in here.attempts] == ["charge:1", "ship:1", "ship:1"]
    assert here.instances["i"].run == 2
    assert here.kinds().count("activity.scheduled ship:1") == 1
    here.check_projections()


def test_a_retry_gives_repaired_code_the_input_that_it_could_not_bear() -> None:
    here = world()
    mended = False

    @workflow(name="order")
    async def bad(ctx: WorkflowContext, order_id: str) -> str:
        first = await charge(order_id)
        if not mended:
            raise KeyError(first)
        return first

    here.restart(bad)
    here.start("order", "o1")
    here.run()
    assert here.error()["type"].endswith("KeyError")
    mended = True
    assert command(here, w.RETRY)["ok"]
    assert here.output() == "charged o1"
    assert len(here.attempts) == 1
    here.check_projections()


def test_only_what_has_failed_can_be_retried() -> None:
    here = world()
    here.start("order", "o1")
    here.run()
    assert error_of(command(here, w.RETRY)) == "NotRetryableError"
    assert error_of(command(here, w.RETRY, "nobody")) == "InstanceNotFoundError"
    here.answers = {}
    here.start("order", "o2", "waits")
    here.step()
    assert error_of(command(here, w.RETRY, "waits")) == "NotRetryableError"


def test_a_reset_repeats_everything_behind_a_point() -> None:
    here = world()
    here.start("order", "o1")
    here.run()
    seq = here.kinds().index("timer.started timer:1") + 1
    assert command(here, w.RESET, **{w.X_SEQUENCE: str(seq)}) == {"ok": True, "run": 2}
    assert here.output() == ["charged o1", "shipped"]
    # Event `seq` answers the result of charge, so that result is delivered again: charge itself is not repeated.
    assert [name for name, *_ in here.attempts] == ["charge:1", "ship:1", "ship:1"]
    assert here.kinds() == [f"{e.kind} {e.ref}" if e.ref else e.kind for e in here.run_of("i", 1)]
    here.check_projections()


def test_a_reset_to_the_first_event_begins_anew() -> None:
    here = world()
    here.start("order", "o1")
    here.run()
    assert command(here, w.RESET, **{w.X_SEQUENCE: "1"})["run"] == 2
    assert [name for name, *_ in here.attempts] == ["charge:1", "ship:1"] * 2
    assert here.output() == ["charged o1", "shipped"]
    assert error_of(command(here, w.RESET, **{w.X_SEQUENCE: "99"})) == "InvalidResetPointError"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_running_instance_can_be_reset_and_drops_what_the_old_run_was_waiting_for(restarts: bool) -> None:
    here = world()
    here.answers = {}
    here.start("order", "o1")
    here.step()
    [task] = [row for row in here.outbox if ".tasks." in row.topic]
    if restarts:
        here.restart()
    assert command(here, w.RESET, **{w.X_SEQUENCE: "1"})["ok"]
    here.result(task, "of the old run")
    here.run()
    assert here.core.stats["late_result"] == 1
    assert [e.kind for e in here.run_of("i", 1)][-1] == "workflow.reset"
    here.answers = {"charge": lambda *_: "anew", "ship": lambda *_: "shipped"}
    [again] = [row for row in here.outbox if ".tasks." in row.topic and ("ce_" + w.X_RUN, "2") in row.headers]
    here.result(again, "anew")
    here.run()
    assert here.output() == ["anew", "shipped"]
    here.check_projections()


def test_what_was_open_at_the_point_is_asked_for_again() -> None:
    @workflow(name="order")
    async def both(ctx: WorkflowContext, order_id: str) -> list[str]:
        import asyncio

        return list(await asyncio.gather(charge(order_id), ship(order_id)))

    here = World(both, answers={"charge": lambda *_: "charged"})
    here.start("order", "o1")
    here.run()
    assert here.instances["i"].status == "running"
    here.answers = {"charge": lambda *_: "charged", "ship": lambda *_: "shipped"}
    assert command(here, w.RESET)["ok"]
    assert here.output() == ["charged", "shipped"]
    assert [name for name, *_ in here.attempts] == ["charge:1", "ship:1", "ship:1"]


@pytest.mark.parametrize("partitions", [1, 7])
def test_a_fork_lives_another_life_from_the_same_past(partitions: int) -> None:
    here = World(order, answers={"charge": lambda *_: "charged", "ship": lambda *_: "shipped"}, partitions=partitions)
    here.start("order", "o1")
    here.run()
    seq = here.kinds().index("timer.fired timer:1") + 1
    answer = command(here, w.FORK, "j", **{w.X_INSTANCE: "i", w.X_RUN: "1", w.X_SEQUENCE: str(seq)})
    assert answer == {"ok": True, "run": 1}
    assert here.output("j") == ["charged", "shipped"] == here.output("i")
    assert here.instances["i"].run == 1
    assert [name for name, *_ in here.attempts] == ["charge:1", "ship:1", "ship:1"]
    for taken in ("i", "j"):
        again = command(here, w.FORK, taken, **{w.X_INSTANCE: "i", w.X_RUN: "1"})
        assert error_of(again) == "InstanceExistsError"
    lost = command(here, w.FORK, "k", **{w.X_INSTANCE: "nobody", w.X_RUN: "1"})
    assert error_of(lost) == "InstanceNotFoundError"
    here.check_projections()


def test_a_deleted_instance_is_gone_and_its_runs_are_never_used_again() -> None:
    here = world()
    start = here.start("order", "o1")
    here.run()
    assert command(here, w.DELETE) == {"ok": True}
    assert "i" not in here.instances
    assert not here.history.get("i")
    assert error_of(command(here, w.DELETE)) == "InstanceNotFoundError"
    here.send(start)
    here.run()
    assert "i" not in here.instances, "the same start is known from the tombstone"
    here.start("order", "o2")
    here.run()
    assert here.output() == ["charged o2", "shipped"]
    assert here.instances["i"].run == 2


def test_a_running_instance_is_not_deleted() -> None:
    here = world()
    here.answers = {}
    here.start("order", "o1")
    here.step()
    assert error_of(command(here, w.DELETE)) == "NotDeletableError"


def test_a_start_in_the_batch_of_a_deletion_comes_after_it() -> None:
    here = world()
    here.start("order", "o1")
    here.run()
    here.send(WireEvent("d", "/operator", w.DELETE, "i", None, TIME, {}))
    here.start("order", "o2")
    here.run()
    assert here.output() == ["charged o2", "shipped"]
    assert here.instances["i"].run == 2
    here.check_projections()


def test_retention_removes_what_has_been_finished_long_enough() -> None:
    here = world()
    here.start("order", "o1")
    here.run()
    finished_us = here.instances["i"].finished_us
    assert finished_us is not None
    here.step([Outlived(0, "i", finished_us - 1)])
    assert "i" in here.instances
    here.step([Outlived(0, "i", finished_us)])
    assert "i" not in here.instances
    here.step([Outlived(0, "i", finished_us)])
