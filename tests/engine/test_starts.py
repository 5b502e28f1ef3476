"""Starts that wait, and starts of ids that are taken or were, on the core without I/O."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from romancy_stream import WorkflowContext, workflow
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.world import START_US, World


@workflow
async def ends(ctx: WorkflowContext, how: str) -> str:
    await ctx.sleep(10)
    if how == "fails":
        raise RuntimeError("as asked")
    return f"{how} in run {ctx.run}"


@workflow
async def other(ctx: WorkflowContext) -> None:
    await ctx.sleep(1_000)


def answers(world: World, command: WireEvent) -> list[dict[str, Any]]:
    told = [event for event in world.events if event.extensions.get(w.X_CAUSATION) == command.id]
    return [orjson.loads(event.data or b"") for event in told if event.type == w.ANSWERED]


def rejections(world: World) -> list[str]:
    return [orjson.loads(event.data or b"")["message"] for event in world.events if event.type == w.REJECTED]


# -- later -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("restarts", [False, True])
def test_a_start_that_waits_is_there_at_once(restarts: bool) -> None:
    world = World(ends)
    world.start("ends", "well", **{w.X_BEGIN: "2023-11-15T00:00:00+02:00"})
    begin_us = 1_699_999_200_000_000
    assert begin_us < START_US
    world.start("ends", "well", "later", **{w.X_BEGIN: "2023-11-15T01:00:00Z"})
    world.step()
    assert world.instances["i"].waiting_for is None
    assert [row.due_us for row in world.timers.values()] == [START_US + 10_000_000, 1_700_010_000_000_000]
    assert world.instances["later"].status == "waiting_for_timer"
    world.run(restarts=restarts)
    assert world.output("later") == "well in run 1"
    assert (world.instances["later"].finished_us or 0) >= 1_700_010_010_000_000
    assert world.kinds("later") == [
        "workflow.started",
        "timer.started timer:1",
        "timer.fired timer:1",
        "timer.started timer:2",
        "timer.fired timer:2",
        "workflow.completed",
    ]
    world.check_projections()


def test_a_start_that_waits_is_checked_at_once_and_can_be_cancelled() -> None:
    world = World(ends)
    world.start("ends", 7, "wrong", **{w.X_BEGIN: "2030-01-01T00:00:00Z"})
    world.start("ends", "well", "right", **{w.X_BEGIN: "2030-01-01T00:00:00Z"})
    world.start("ends", "well", "never", **{w.X_BEGIN: "tomorrow"})
    world.step()
    assert set(world.instances) == {"right"}
    assert {each.reason for each in world.rejections.values()} == {"invalid_input", "bad_attribute"}
    cancel = WireEvent("c", "/test", w.CANCEL, "right", None, "2026-01-01T00:00:00Z")
    world.send(cancel)
    world.run(restarts=True)
    assert world.instances["right"].status == "cancelled"
    assert not world.timers


# -- again -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("first", "reuse", "runs"),
    [
        ("well", None, 1),
        ("fails", None, 1),
        ("well", "reject_duplicate", 1),
        ("fails", "reject_duplicate", 1),
        ("well", "allow_failed", 1),
        ("fails", "allow_failed", 2),
        ("well", "allow_finished", 2),
        ("fails", "allow_finished", 2),
    ],
)
def test_what_a_start_does_with_an_instance_that_has_ended(
    first: str, reuse: str | None, runs: int, restarts: bool
) -> None:
    options = {} if reuse is None else {w.X_REUSE: reuse}
    world = World(ends)
    begun = world.start("ends", first, **options)
    world.run(restarts=restarts)
    again = world.start("ends", "again", **options)
    for _ in range(3):  # and whatever comes twice
        world.send(begun)
        world.send(again)
        world.run(restarts=restarts)
    row = world.instances["i"]
    assert row.run == runs
    assert len({event.run for event in world.history["i"]}) == runs
    if runs == 2:
        assert world.output() == "again in run 2"
        assert (row.event_source, row.event_id) == (again.source, again.id)
        assert answers(world, again)[0] == {"ok": True, "run": 2, "started": True}
    elif reuse == "reject_duplicate":
        assert "exists: it is" in rejections(world)[0]
        assert answers(world, again)[0]["error"]["type"].endswith("InstanceExistsError")
    else:
        assert not rejections(world)
        assert answers(world, again) == ([] if reuse is None else [{"ok": True, "run": 1, "started": False}] * 4)
    world.check_projections()


def test_a_start_that_was_answered_does_not_start_again_after_others_did() -> None:
    world = World(ends)
    starts = [world.start("ends", "fails", **{w.X_REUSE: "allow_failed"})]
    world.run()
    starts.append(world.start("ends", "fails", **{w.X_REUSE: "allow_failed"}))
    world.run()
    for each in starts * 2:
        world.send(each)
        world.run(restarts=True)
    assert world.instances["i"].run == 2


@pytest.mark.parametrize("reuse", [None, "allow_finished", "reject_duplicate"])
@pytest.mark.parametrize("conflict", [None, "fail"])
def test_an_instance_that_runs_is_used_or_in_the_way(reuse: str | None, conflict: str | None) -> None:
    given = ((w.X_REUSE, reuse), (w.X_CONFLICT, conflict))
    world = World(ends)
    world.start("ends", "well")
    world.step()
    world.start("ends", "again", **{name: value for name, value in given if value is not None})
    world.run()
    assert world.output() == "well in run 1"
    assert rejections(world) == ([] if conflict is None else ["instance i exists"])


@pytest.mark.parametrize("reuse", [None, "allow_finished"])
def test_an_id_of_another_workflow_is_not_handed_out(reuse: str | None) -> None:
    world = World(ends, other)
    world.start("ends", "well")
    world.run()
    world.start("other", **({} if reuse is None else {w.X_REUSE: reuse}))
    world.run()
    assert world.instances["i"].run == 1
    assert rejections(world) == ["instance i exists and is one of workflow 'ends', not 'other'"]


def test_who_cannot_start_is_told_in_the_answer_too() -> None:
    world = World(ends)
    wrong = [world.start("ends", 7, "a", **{w.X_REUSE: "allow_failed"})]
    wrong.append(world.start("nobody", 7, "b", **{w.X_REUSE: "allow_failed"}))
    wrong.append(world.start("ends", "well", "c", **{w.X_REUSE: "sometimes"}))
    world.run()
    assert not world.instances
    told = [answers(world, each)[0]["error"]["type"].rpartition(":")[2] for each in wrong]
    assert told == ["InvalidInputError", "UnknownWorkflowError", "StartRefusedError"]
