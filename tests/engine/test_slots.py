"""Runs of a workflow that take turns: so many at a time, in the order in which they were started, whatever crashes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine import history as h
from romancy_stream.engine.slots import Slots
from romancy_stream.queues import Concurrency
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import workflow
from tests.engine.world import World

TIME = "2026-01-01T00:00:00Z"


@activity(retry=RetryPolicy.none())
async def work(n: int) -> int:
    raise AssertionError("activities run in workers")


@activity
async def undo(n: int) -> None:
    raise AssertionError("activities run in workers")


@workflow(concurrency=Concurrency(key="customer", limit=1))
async def bill(ctx: WorkflowContext, customer: str, n: int = 0) -> int:
    return await work(n)


@workflow(concurrency=Concurrency(key="customer.id", limit=2))
async def pack(ctx: WorkflowContext, order: dict[str, Any]) -> int:
    return await work(order["n"])


@workflow(concurrency=Concurrency(limit=1))
async def alone(ctx: WorkflowContext) -> int:
    return await work(1)


@workflow(concurrency=Concurrency(key="customer"))
async def one(ctx: WorkflowContext, customer: str) -> int:
    return await work(1)


@workflow(concurrency=Concurrency(key="name"))
async def again(ctx: WorkflowContext, name: str, times: int) -> str:
    await work(times)
    if times > 1:
        await ctx.recur(name, times - 1)
    return name


@workflow(concurrency=Concurrency(key="name"))
async def careful(ctx: WorkflowContext, name: str) -> None:
    ctx.on_rollback(undo, 7)
    await work(1)
    raise ValueError("after all")


class Turns(World):
    """Activities are answered by hand: `under_way` is what has begun, by instance."""

    def __init__(self, *workflows: Any, **options: Any) -> None:
        super().__init__(*workflows, **{"partitions": 3, "cached": 1, **options})
        self.answered = 0

    @property
    def tasks(self) -> list[Any]:
        return [row for row in self.outbox if ".tasks." in row.topic]

    def settle(self, *, restarts: bool = True) -> list[str]:
        """Until all wait for an activity; returns the instances that have begun one since the last time."""
        self.run(restarts=restarts)
        begun = [dict(row.headers)["ce_subject"] for row in self.tasks[self.answered :]]
        return sorted(begun)

    def finish(self, instance_id: str, **how: Any) -> None:
        for row in self.tasks[self.answered :]:
            if dict(row.headers)["ce_subject"] == instance_id:
                self.result(row, **({"value": 1} | how if "error" not in how else how))

    def command(self, kind: str, instance_id: str) -> None:
        event = WireEvent(f"{kind} {instance_id}", "/test", kind, instance_id, b"{}", TIME)
        self.send(event, self.part_of(instance_id))
        self.run(restarts=True)

    def waiting(self, instance_id: str) -> Any:
        row = self.instances[instance_id]
        return row.status, None if row.waiting_for is None else orjson.loads(row.waiting_for)


def test_one_at_a_time_in_the_order_of_the_starts() -> None:
    world = Turns(bill)
    for n in range(4):
        world.start("bill", {"customer": "c1", "n": n}, f"i{n}")
        world.step()
    world.start("bill", {"customer": "c2"}, "other")
    assert world.settle() == ["i0", "other"]
    assert world.waiting("i1") == ("running", ["slot customer=c1"])
    assert world.waiting("i0") == ("running", None)
    for n in range(4):
        assert f"i{n}" in world.settle()
        assert f"i{n + 1}" not in world.settle()
        world.finish(f"i{n}")
    world.settle()
    assert [world.instances[f"i{n}"].status for n in range(4)] == ["completed"] * 4
    world.finish("other")
    world.settle()
    assert not world.entities
    assert not world.members
    world.check_projections()


def test_a_limit_of_more_than_one_and_a_field_of_a_field() -> None:
    world = Turns(pack)
    for n in range(5):
        world.start("pack", {"customer": {"id": 7 if n % 2 else 7.0}, "n": n}, f"i{n}")
        world.step()
    assert world.settle() == ["i0", "i1"]
    world.finish("i1")
    assert world.settle() == ["i0", "i1", "i2"]
    world.start("pack", {"customer": {}, "n": 9}, "nobodys")
    assert world.settle() == ["i0", "i1", "i2", "nobodys"]
    assert h.SLOT_ASKED not in {event.kind for event in world.history["nobodys"]}


def test_all_runs_of_a_workflow_and_an_input_that_is_the_value() -> None:
    world = Turns(alone, one)
    world.start("alone", None, "a")
    world.step()
    world.start("alone", None, "b")
    for name, customer in (("x", "c1"), ("y", "c1"), ("z", "c2")):
        world.step()
        world.start("one", customer, name)
    assert world.settle() == ["a", "x", "z"]
    assert world.waiting("b") == ("running", ["slot alone"])
    assert world.waiting("y") == ("running", ["slot customer=c1"])


def test_who_fails_or_is_cancelled_makes_room() -> None:
    world = Turns(bill)
    for n in range(4):
        world.start("bill", {"customer": "c1"}, f"i{n}")
        world.step()
    world.settle()
    for n in (1, 0):  # one that waits, and the one at work
        world.command(w.CANCEL, f"i{n}")
    assert [world.instances[f"i{n}"].status for n in (0, 1)] == ["cancelled"] * 2
    assert world.settle() == ["i0", "i2"]
    world.finish("i2", error=ValueError("no"))
    assert world.settle() == ["i0", "i2", "i3"]
    assert world.instances["i2"].status == "failed"


def test_a_slot_is_kept_over_runs_that_follow_one_another() -> None:
    world = Turns(again)
    world.start("again", {"name": "c1", "times": 3}, "i0")
    world.step()
    world.start("again", {"name": "c1", "times": 1}, "i1")
    for _ in range(3):
        assert world.settle() == ["i0"]
        world.finish("i0")
        world.settle()
        world.answered += 1
    assert world.output("i0") == "c1"
    assert world.instances["i0"].run == 3
    assert world.settle() == ["i1"]
    world.finish("i1")
    world.settle()
    assert not world.members


def test_compensations_are_still_its_work() -> None:
    world = Turns(careful)
    for n in range(2):
        world.start("careful", "c1", f"i{n}")
        world.step()
    assert world.settle() == ["i0"]
    world.finish("i0")
    assert world.settle() == ["i0", "i0"]
    assert world.instances["i0"].status == "compensating"
    world.answered = 1
    world.finish("i0", value=None)
    world.settle()
    assert world.instances["i0"].status == "failed"
    assert world.settle() == ["i0", "i1"]


def test_a_run_that_is_sent_back_keeps_its_slot() -> None:
    world = Turns(bill)
    for n in range(3):
        world.start("bill", {"customer": "c1"}, f"i{n}")
        world.step()
    world.settle()
    for n in range(2):
        world.command(w.RESET, f"i{n}")
    assert [world.instances[f"i{n}"].run for n in range(2)] == [2, 2]
    assert world.settle() == ["i0", "i0"]
    assert world.waiting("i1") == ("running", ["slot customer=c1"])
    world.answered = 1
    world.finish("i0")
    assert world.settle() == ["i0", "i1"]  # it has its place in the line, too


@workflow(name="alone", concurrency=Concurrency(limit=1))
async def idle(ctx: WorkflowContext) -> None: ...


@pytest.mark.parametrize("sequence", [1, 2, 3, 5])
def test_a_run_that_is_sent_back_and_ends_at_once_leaves_no_slot_behind(sequence: int) -> None:
    flow = idle if sequence < 5 else alone
    world = Turns(flow, answers={"work": lambda *_: 1})
    world.start("alone")
    world.run(restarts=True)
    world.send(WireEvent("r", "/test", w.RESET, "i", None, TIME, {w.X_SEQUENCE: str(sequence)}), world.part_of("i"))
    world.run(restarts=True)
    assert (world.instances["i"].run, world.instances["i"].status) == (2, "completed")
    assert not world.members
    world.start("alone", instance_id="next")
    world.run(restarts=True)
    assert world.instances["next"].status == "completed"
    world.check_projections()


def test_a_run_that_is_sent_back_to_its_slot_after_its_end_waits_for_it_again() -> None:
    world = Turns(alone)
    world.start("alone")
    world.settle()
    world.finish("i")
    world.start("alone", instance_id="next")
    world.settle()
    world.send(WireEvent("r", "/test", w.RESET, "i", None, TIME, {w.X_SEQUENCE: "3"}), world.part_of("i"))
    world.answered = 2
    assert world.settle() == []
    assert world.waiting("i") == ("running", ["slot alone"])
    world.answered = 1
    world.finish("next")
    assert world.settle() == ["i", "next"]


def test_a_retry_goes_on_at_once() -> None:
    world = Turns(bill)
    for n in range(2):
        world.start("bill", {"customer": "c1"}, f"i{n}")
        world.step()
    world.settle()
    world.finish("i0", error=ValueError("no"))
    assert world.settle() == ["i0", "i1"]
    world.command(w.RETRY, "i0")
    assert world.settle() == ["i0", "i0", "i1"]
    world.start("bill", {"customer": "c1"}, "i2")
    world.settle()
    world.finish("i1")
    assert "i2" not in world.settle()  # the one that was tried again is at work
    world.answered = 2
    world.finish("i0")
    assert "i2" in world.settle()


def test_a_change_of_the_limit_counts_from_the_next_who_asks() -> None:
    world = Turns(bill)
    for n in range(3):
        world.start("bill", {"customer": "c1"}, f"i{n}")
        world.step()
    assert world.settle() == ["i0"]

    @workflow(name="bill", concurrency=Concurrency(key="customer", limit=3))
    async def wider(ctx: WorkflowContext, customer: str, n: int = 0) -> int:
        return await work(n)

    world.restart(wider)
    world.start("bill", {"customer": "c1"}, "i3")
    assert world.settle() == ["i0", "i1", "i2"]


def test_who_began_before_the_workflow_took_turns_goes_on_without() -> None:
    @workflow(name="bill")
    async def before(ctx: WorkflowContext, customer: str, n: int = 0) -> int:
        return await work(n)

    world = Turns(before)
    world.start("bill", {"customer": "c1"}, "i0")
    world.settle()
    world.restart(bill)
    world.start("bill", {"customer": "c1"}, "i1")
    assert world.settle() == ["i0", "i1"]
    world.finish("i0")
    world.finish("i1")
    world.settle()
    assert world.output("i0") == world.output("i1") == 1


def test_a_thousand_who_wait_are_granted_in_order() -> None:
    world = Turns(bill, answers={"work": lambda _, args: args[0]}, cached=2_000)
    for n in range(300):
        world.start("bill", {"customer": "c1", "n": n}, f"i{n:03}")
    world.run()
    granted = sorted(
        (event.at_us, event.instance_id)
        for events in world.history.values()
        for event in events
        if event.kind == h.SLOT_GRANTED
    )
    assert len(granted) == 300
    assert len({at_us for at_us, _ in granted}) == 300  # one after the other
    assert not world.entities


@pytest.mark.parametrize("wrong", [{"key": ""}, {"key": "a..b"}, {"limit": 0}, {"limit": True}], ids=str)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Concurrency(**wrong)


def test_the_name_of_an_entity_says_its_kind() -> None:
    world = Turns(bill)
    world.start("bill", {"customer": "x" * 500}, "i0")
    world.settle()
    (name,) = world.entities
    assert name.startswith(f"{Slots.kind}:")
    assert len(orjson.loads(world.entities[name].head)["of"]) == len("customer=") + 200
