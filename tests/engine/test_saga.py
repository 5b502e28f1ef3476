"""Compensations: in reverse order, each recorded before the next, whatever crashes in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import orjson
import pytest

from romancy_stream.activity import activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine.commit import ActivityKey, OutboxRow, RecordedResult
from romancy_stream.engine.failure import workflow_cancelled, workflow_failed
from romancy_stream.engine.instance import LiveInstance, replay
from romancy_stream.engine.loop import stepping_aside
from romancy_stream.errors import NonDeterminismError, TerminalError
from romancy_stream.retry import RetryPolicy
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.malformed import MAX_WRAPPED_BYTES
from romancy_stream.workflow import workflow
from tests.engine.test_cancel import CRASHES, cancel, cancelled, slow
from tests.engine.world import World

Call = tuple[str, int, dict[str, Any]]  # activity id, attempt, arguments
ONCE_MORE = RetryPolicy.fixed(3, 2.0)


@activity
async def release(sku: str, count: int, result: dict[str, Any]) -> None:
    raise AssertionError("activities run in workers")


@activity(compensate=release)
async def reserve(order_id: str, sku: str, count: int = 1) -> dict[str, Any]:
    raise AssertionError("activities run in workers")


@activity(retry=ONCE_MORE)
async def refund(amount: str) -> None:
    raise AssertionError("activities run in workers")


@activity(compensate=refund)
async def charge(amount: str) -> str:
    raise AssertionError("activities run in workers")


@activity
async def ship(order_id: str) -> str:
    raise AssertionError("activities run in workers")


@activity
async def tell(text: str) -> None:
    raise AssertionError("activities run in workers")


class Shop(World):
    """`broken`: activity id -> how many attempts fail, or the error of all of them. Checks that nothing is asked of a
    worker before what comes before it is in history."""

    def __init__(self, *workflows: Any, broken: Mapping[str, int | Exception] | None = None, **options: Any) -> None:
        super().__init__(*workflows, **options)
        self.broken = dict(broken or {})
        self.calls: list[Call] = []
        self.silent: set[str] = set()

    def _work(self, row: OutboxRow) -> None:
        headers = {name.removeprefix("ce_"): text for name, text in row.headers}
        ref, attempt = headers[w.X_ACTIVITY_ID], int(headers[w.X_ATTEMPT])
        self._check_recorded(headers["subject"], ref)
        call = orjson.loads(self.config.sealing.open(row.value or b"{}", {}))
        names = {"reserve": ("order_id", "sku", "count"), "charge": ("amount",), "ship": ("order_id",)}
        named = dict(zip(names.get(headers[w.X_ACTIVITY], ()), call["args"], strict=False)) | call["kwargs"]
        self.calls.append((ref, attempt, named))
        broken = self.broken.get(ref, 0)
        if ref in self.silent:
            return
        if isinstance(broken, Exception):
            self.result(row, error=broken)
        elif attempt <= broken:
            self.result(row, error=ConnectionError(f"attempt {attempt}"))
        else:
            value = {"id": f"done {ref}"} if headers[w.X_ACTIVITY] == "reserve" else f"done {ref}"
            self.result(row, value)

    def _check_recorded(self, instance_id: str, ref: str) -> None:
        """A compensation is under way only when those before it have ended in what is committed."""
        kinds = [event.kind for event in self.history[instance_id] if event.kind.startswith("compensation.")]
        if ref.startswith("undo:"):
            scheduled = kinds.count("compensation.scheduled")
            ended = kinds.count("compensation.completed") + kinds.count("compensation.failed")
            assert scheduled == ended + 1

    def undone(self) -> list[str]:
        return [ref.removeprefix("undo:") for ref, *_ in self.calls if ref.startswith("undo:")]


@workflow
async def order(ctx: WorkflowContext, order_id: str) -> str:
    first = await reserve(order_id, "a", count=2)
    ctx.on_rollback(tell, f"{order_id}: {first['id']}")
    await charge("9.90")
    await reserve(order_id=order_id, sku="b")
    return await ship(order_id)


@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_nothing_is_undone_when_all_is_well(options: dict[str, Any], restarts: bool) -> None:
    world = Shop(order, **options)
    world.start("order", "o-1")
    world.run(restarts=restarts)
    assert world.output() == "done ship:1"
    assert not world.undone()
    assert not [kind for kind in world.kinds() if "compensat" in kind and "registered" not in kind]
    world.check_projections()


UNDONE = ["reserve:2", "charge:1", "rollback:1", "reserve:1"]


@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_a_failure_in_the_middle_undoes_what_was_completed_last_first(options: dict[str, Any], restarts: bool) -> None:
    world = Shop(order, broken={"ship:1": TerminalError("no truck")}, **options)
    world.start("order", "o-1")
    world.run(restarts=restarts)
    assert world.undone() == UNDONE
    assert world.kinds()[-10:] == [
        "workflow.compensating",
        *(f"compensation.{step} {ref}" for ref in UNDONE for step in ("scheduled", "completed")),
        "workflow.failed",
    ]
    arguments = {ref: named for ref, _, named in world.calls}
    assert arguments["undo:reserve:1"] == {"sku": "a", "count": 2, "result": {"id": "done reserve:1"}}
    assert arguments["undo:reserve:2"] == {"sku": "b", "count": 1, "result": {"id": "done reserve:2"}}
    assert arguments["undo:charge:1"] == {"amount": "9.90"}
    assert world.error()["message"] == "no truck"
    assert "compensation_failed" not in world.error()
    [told] = [event for event in world.events if event.type == w.FAILED]
    assert orjson.loads(told.data or b"") == {"error": world.error()}
    assert {row.status for key, row in world.activities.items() if key[2].startswith("undo:")} == {"completed"}
    assert not world.timers
    world.check_projections()


@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_a_cancellation_undoes_too(options: dict[str, Any], restarts: bool) -> None:
    world = Shop(order, **options)
    world.silent = {"ship:1"}
    world.start("order", "o-1")
    world.run(restarts=restarts)
    cancel(world, reason="changed their mind")
    world.run(restarts=restarts)
    assert world.undone() == UNDONE
    assert cancelled(world) == {"reason": "changed their mind", "by": "/desk"}
    assert world.kinds()[-11] == "activity.cancelled ship:1"
    assert [event.type for event in world.events if event.type != w.STARTED] == [w.ANSWERED, w.CANCELLED]
    world.check_projections()


def test_the_status_is_compensating_meanwhile_and_cancelling_then_changes_nothing() -> None:
    world = Shop(order, broken={"ship:1": TerminalError("no truck")})
    world.silent = {"undo:charge:1"}
    world.start("order", "o-1")
    world.run()
    assert world.instances["i"].status == "compensating"
    assert world.instances["i"].finished_us is None
    cancel(world)
    world.run(restarts=True)
    assert world.instances["i"].status == "compensating"
    assert orjson.loads(world.events[-1].data or b"") == {"ok": True}
    assert "workflow.cancel_requested" not in world.kinds()
    world.result(next(row for row in world.outbox if ("ce_romancyactivityid", "undo:charge:1") in row.headers))
    world.run(restarts=True)
    assert world.error()["message"] == "no truck"
    assert world.undone() == UNDONE


@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_a_compensation_has_its_own_retries(options: dict[str, Any], restarts: bool) -> None:
    world = Shop(order, broken={"ship:1": TerminalError("no truck"), "undo:charge:1": 2}, **options)
    world.start("order", "o-1")
    begun_us = world.now_us
    world.run(restarts=restarts)
    assert [call[:2] for call in world.calls if call[0] == "undo:charge:1"] == [
        ("undo:charge:1", 1),
        ("undo:charge:1", 2),
        ("undo:charge:1", 3),
    ]
    assert world.now_us - begun_us >= 4_000_000
    assert Counter(world.undone()) == Counter([*UNDONE, "charge:1", "charge:1"])
    row = world.activities["i", 1, "undo:charge:1"]
    assert (row.status, row.attempt) == ("completed", 3)
    assert "compensation_failed" not in world.error()
    world.check_projections()


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
@pytest.mark.parametrize(("options", "restarts"), CRASHES)
def test_one_that_fails_for_good_is_recorded_and_the_others_go_on(
    outcome: str, options: dict[str, Any], restarts: bool
) -> None:
    broken: dict[str, int | Exception] = {"undo:charge:1": 99, "undo:reserve:2": TerminalError("gone")}
    if outcome == "failed":
        broken["ship:1"] = TerminalError("no truck")
    world = Shop(order, broken=broken, **options)
    world.silent = set() if outcome == "failed" else {"ship:1"}
    world.start("order", "o-1")
    world.run(restarts=restarts)
    if outcome == "cancelled":
        cancel(world)
        world.run(restarts=restarts)
    assert list(dict.fromkeys(world.undone())) == UNDONE
    row = world.instances["i"]
    assert row.status == outcome
    failed = ["reserve:2", "charge:1"]
    assert orjson.loads(row.error or b"")["compensation_failed"] == failed
    assert world.history["i"][-1].attrs == {"compensation_failed": failed}
    [told] = [event for event in world.events if event.type in (w.FAILED, w.CANCELLED)]
    data = orjson.loads(told.data or b"")
    assert (data["error"] if outcome == "failed" else data)["compensation_failed"] == failed
    error = (workflow_failed if outcome == "failed" else workflow_cancelled)("i", row.error)
    assert error.compensation_failed == failed
    assert "could not be undone: reserve:2, charge:1" in str(error)
    [refunded] = [e for e in world.history["i"] if e.kind == "compensation.failed" and e.ref == "charge:1"]
    assert orjson.loads(refunded.payload or b"")["type"].endswith("RetryExhaustedError")
    world.check_projections()


def test_a_crash_in_a_compensation_does_not_forget_the_rest() -> None:
    for crash_at in range(1, 30):
        world = Shop(order, broken={"ship:1": TerminalError("no truck"), "undo:charge:1": 1})
        world.start("order", "o-1")
        for step in range(100):
            if step == crash_at:
                world.restart()
            due_us = world.core.timers.next_due_us()
            if not world.pending:
                if due_us is None:
                    break
                world.now_us = max(world.now_us, due_us)
            world.step()
        done = [event.ref for event in world.history["i"] if event.kind == "compensation.completed"]
        assert done == UNDONE
        world.check_projections()


@pytest.mark.parametrize("seed", range(40))
def test_random_crashes_delays_and_doubles(seed: int) -> None:
    """Each compensation is once in history, in reverse order of completion, and never asked for before those before it
    are recorded (`_check_recorded`)."""
    dice = Random(seed)

    @workflow(name="parallel")
    async def parallel(ctx: WorkflowContext) -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(charge(str(n)) for n in range(4)))
            await ctx.sleep(1)
            await asyncio.gather(*(reserve("o", str(n)) for n in range(3)), ship("o"))
        await ctx.sleep(3_600)

    broken: dict[str, int | Exception] = {f"charge:{n}": dice.choice([0, 0, 1]) for n in range(1, 5)}
    broken |= {f"undo:charge:{n}": dice.choice([0, 0, 1, 99]) for n in range(1, 5)}
    if dice.random() < 0.5:
        broken["ship:1"] = TerminalError("no truck")
    world = Shop(parallel, broken=broken, partitions=3, cached=dice.choice([0, 1, 100]))
    world.start("parallel")
    asked, late = False, []
    for _ in range(3_000):
        if dice.random() < 0.3:
            world.restart()
        world.pending += [record for record in world.pending if dice.random() < 0.2]
        dice.shuffle(world.pending)
        late += [record for record in world.pending if dice.random() < 0.3]
        world.pending = [record for record in world.pending if record not in late]
        due_us = world.core.timers.next_due_us()
        if not world.pending and not late:
            if due_us is None:
                break
            if due_us > world.now_us + 1_000_000_000 and not asked:
                cancel(world)
                asked = True
            elif dice.random() < 0.5:
                world.now_us = max(world.now_us, min(due_us, world.now_us + 2_000_000))
        world.step()
        if dice.random() < 0.5:
            world.pending, late = world.pending + late, []
    assert world.instances["i"].status in ("failed", "cancelled"), f"seed {seed}"
    completed = [e.ref for e in world.history["i"] if e.kind in ("activity.completed", "compensation.found")]
    undone = [e.ref for e in world.history["i"] if e.kind in ("compensation.completed", "compensation.failed")]
    scheduled = [e.ref for e in world.history["i"] if e.kind == "compensation.scheduled"]
    assert undone == scheduled
    assert set(undone) == {ref for ref in completed if ref != "ship:1"}
    assert len(set(undone)) == len(undone)
    found = {e.ref for e in world.history["i"] if e.kind == "compensation.found"}
    before = [ref for ref in completed if ref not in found and ref != "ship:1"]
    assert [ref for ref in undone if ref not in found] == before[::-1]
    world.check_projections()


# -- what a worker completed though nobody waited for it any more -----------------------------------------------------
@workflow
async def hurries(ctx: WorkflowContext) -> None:
    await charge("1.00")
    try:
        async with asyncio.timeout(5):
            await reserve("o", "a")
    except TimeoutError:
        pass
    await ship("o")


@pytest.mark.parametrize(("options", "restarts"), CRASHES)
@pytest.mark.parametrize("when", ["before it was cancelled", "never"])
def test_a_cancelled_activity_that_its_worker_had_completed_is_undone(
    when: str, options: dict[str, Any], restarts: bool
) -> None:
    world = Shop(hurries, broken={"ship:1": TerminalError("no truck")}, **options)
    world.silent = {"reserve:1"}
    world.start("hurries")
    world.run(restarts=restarts, until_us=world.now_us + 1_000_000)
    key = ActivityKey("i", 1, "reserve:1")
    if when != "never":  # committed, and its message is lost or late
        world.results[key] = RecordedResult(key, 1, "completed", b'{"id":7}', "w", world.now_us)
    world.run(restarts=restarts)
    assert world.error()["message"] == "no truck"
    if when == "never":
        assert world.undone() == ["charge:1"]
        assert world.results[key].outcome == "closed"
    else:
        assert world.undone() == ["reserve:1", "charge:1"]
        assert "compensation.found reserve:1" in world.kinds()
        assert world.calls[-2][2] == {"sku": "a", "count": 1, "result": {"id": 7}}
    assert not world.timers
    world.check_projections()


@pytest.mark.parametrize("late", ["while it runs", "while it is undone"])
def test_a_late_result_of_a_cancelled_activity_is_undone_too(late: str) -> None:
    """A worker without a transaction claims no key: it has done what it has done."""
    world = Shop(hurries, broken={"ship:1": TerminalError("no truck")})
    world.silent = {"reserve:1", *(["ship:1"] if late == "while it runs" else ["undo:charge:1"])}
    world.start("hurries")
    world.run()
    task = {dict(row.headers)["ce_romancyactivityid"]: row for row in world.outbox if ".tasks." in row.topic}
    world.result(task["reserve:1"], {"id": 8})
    world.result(task["reserve:1"], {"id": 8})
    world.step()
    assert world.core.stats["late_result"] == 1
    if late == "while it runs":
        world.result(task["ship:1"], error=TerminalError("no truck"))
    else:
        world.result(task["undo:charge:1"])
    world.run(restarts=True)
    assert Counter(world.undone()) == Counter(["reserve:1", "charge:1"])
    assert world.error()["message"] == "no truck"
    world.check_projections()


def test_an_activity_that_is_under_way_when_the_workflow_fails_is_claimed() -> None:
    """There is nothing else to undo: what it has done is looked for all the same."""

    @workflow
    async def both(ctx: WorkflowContext) -> None:
        await asyncio.gather(charge("1"), reserve("o", "a"), ship("o"))

    world = Shop(both, broken={"ship:1": TerminalError("no truck")})
    world.silent = {"charge:1", "reserve:1"}
    world.start("both")
    world.step()
    key = ActivityKey("i", 1, "charge:1")
    world.results[key] = RecordedResult(key, 1, "completed", b'"r"', "w", world.now_us)
    world.run(restarts=True)
    assert world.undone() == ["charge:1"]
    assert world.results[ActivityKey("i", 1, "reserve:1")].outcome == "closed"
    assert world.error()["message"] == "no truck"
    assert world.activities["i", 1, "reserve:1"].status == "abandoned"
    world.check_projections()


def test_a_failed_activity_is_not_undone() -> None:
    world = Shop(order, broken={"charge:1": TerminalError("declined")})
    world.start("order", "o-1")
    world.run(restarts=True)
    assert world.undone() == ["rollback:1", "reserve:1"]


def test_an_error_that_the_code_deals_with_undoes_nothing() -> None:
    @workflow
    async def copes(ctx: WorkflowContext) -> str:
        await charge("1")
        try:
            await ship("o")
        except TerminalError:
            return "coped"
        return "shipped"

    world = Shop(copes, broken={"ship:1": TerminalError("no truck")})
    world.start("copes")
    world.run(restarts=True)
    assert world.output() == "coped"
    assert not world.undone()


def test_cleanup_comes_before_compensation() -> None:
    @workflow
    async def cleans(ctx: WorkflowContext) -> None:
        await charge("1")
        try:
            await slow()
        finally:
            await ship("back")

    world = Shop(cleans)
    world.silent = {"slow:1"}
    world.start("cleans")
    world.run()
    cancel(world)
    world.run(restarts=True)
    assert [ref for ref, *_ in world.calls] == ["charge:1", "slow:1", "ship:1", "undo:charge:1"]
    assert cancelled(world)


def test_a_parked_instance_is_undone_without_its_code() -> None:
    world = Shop(order)
    world.silent = {"ship:1"}
    world.start("order", "o-1")
    world.run()

    @workflow(name="order")
    async def other(ctx: WorkflowContext, order_id: str) -> str:
        return await ship(order_id)

    world.restart(other)
    world.result(world.outbox[-1], "late")
    world.step()
    assert world.instances["i"].parked is not None
    cancel(world, reason="hopeless")
    world.run(restarts=True)
    assert world.undone() == UNDONE
    assert cancelled(world)["reason"] == "hopeless"
    world.check_projections()


def test_a_result_that_the_database_refuses_parks_and_the_next_one_goes_on() -> None:
    world = Shop(order, broken={"ship:1": TerminalError("no truck")})
    world.silent = {"undo:charge:1"}
    world.start("order", "o-1")
    world.run()
    commit = world.core.park("i", world.now_us, "the database refuses it")
    world.apply(commit)
    assert world.instances["i"].parked is not None
    world.restart()  # looks at what is parked: no code has to agree
    assert world.instances["i"].parked is None
    assert world.instances["i"].status == "compensating"
    world.result(next(row for row in world.outbox if ("ce_romancyactivityid", "undo:charge:1") in row.headers))
    world.run(restarts=True)
    assert world.undone() == UNDONE
    world.check_projections()


def test_replay_compares_how_the_code_ended() -> None:
    world = Shop(order, broken={"ship:1": TerminalError("no truck")})
    world.start("order", "o-1")
    world.run()

    @workflow(name="order")
    async def copes(ctx: WorkflowContext, order_id: str) -> str:
        try:
            return await order.function(ctx, order_id)
        except TerminalError:
            return "coped"

    for code, agrees in ((order, True), (copes, False)):
        live = LiveInstance(code, "i", 1, RetryPolicy())
        with stepping_aside():
            if agrees:
                assert replay(live, world.history["i"]) == []
            else:
                with pytest.raises(NonDeterminismError, match=r"workflow\.failed.*workflow\.completed"):
                    replay(live, world.history["i"])
            live.evict()


def test_every_try_of_a_compensation_has_the_same_key() -> None:
    world = Shop(order, broken={"ship:1": TerminalError("no truck"), "undo:charge:1": 1})
    world.start("order", "o-1")
    world.run()
    tasks = [dict(row.headers) for row in world.outbox if ".tasks." in row.topic]
    keys = {each["ce_romancyidempotencykey"] for each in tasks if each["ce_romancyactivityid"] == "undo:charge:1"}
    assert keys == {"i/1/undo:charge:1"}


def test_options_of_the_compensation() -> None:
    @activity(queue="undoing", timeout=3, total_timeout=60)
    async def undo(n: int) -> None: ...

    @activity(compensate=undo.with_options(retry=ONCE_MORE))
    async def do(n: int) -> None: ...

    @workflow
    async def uses(ctx: WorkflowContext) -> None:
        await do(3)
        await ctx.sleep(5)
        raise KeyError("x")

    world = Shop(uses)
    world.start("uses")
    world.run()
    [scheduled] = [event for event in world.history["i"] if event.kind == "compensation.scheduled"]
    assert scheduled.attrs == {
        "name": "undo",
        "queue": "undoing",
        "policy": ONCE_MORE.to_json(),
        "timeout_s": 3.0,
        "total_timeout_s": 60.0,
        "deadline_us": scheduled.at_us + 60_000_000,
    }
    assert next(row for row in reversed(world.outbox) if ".tasks." in row.topic).topic == "shop.tasks.undoing"


def test_a_compensation_that_runs_out_of_time_has_failed() -> None:
    @activity(total_timeout=60)
    async def undo(n: int) -> None: ...

    @activity(compensate=undo)
    async def do(n: int) -> None: ...

    @workflow
    async def uses(ctx: WorkflowContext) -> None:
        await do(3)
        raise KeyError("x")

    world = Shop(uses)
    world.silent = {"undo:do:1"}
    world.start("uses")
    world.run(restarts=True)
    assert world.error()["compensation_failed"] == ["do:1"]


def test_arguments_and_result_that_no_message_can_hold_fail_that_compensation_alone() -> None:
    half = "x" * (MAX_WRAPPED_BYTES // 2)

    @workflow
    async def large(ctx: WorkflowContext) -> None:
        await charge("1")
        await reserve("o", half)
        await ship("o")

    world = Shop(large, broken={"ship:1": TerminalError("no truck")})
    world.silent = {"reserve:1"}
    world.start("large")
    world.run()
    world.result(next(row for row in reversed(world.outbox) if ".tasks." in row.topic), {"id": half})
    world.run(restarts=True)
    assert world.undone() == ["charge:1"]
    assert world.error()["compensation_failed"] == ["reserve:1"]
    [failed] = [event for event in world.history["i"] if event.kind == "compensation.failed"]
    assert orjson.loads(failed.payload or b"")["type"].endswith("PayloadTooLargeError")
    world.check_projections()


def test_a_history_that_is_too_long_undoes_what_was_done() -> None:
    @workflow
    async def goes_on(ctx: WorkflowContext) -> None:
        await charge("1")
        while True:
            await ctx.sleep(1)

    world = Shop(goes_on, history_limit=50)
    world.start("goes_on")
    world.run(restarts=True)
    assert world.undone() == ["charge:1"]
    assert world.error()["type"].endswith("HistoryTooLongError")
    world.check_projections()


def test_messages_for_an_instance_that_is_being_undone_reach_no_code() -> None:
    world = Shop(order, broken={"ship:1": TerminalError("no truck")})
    world.silent = {"undo:charge:1"}
    world.start("order", "o-1")
    world.run()
    for restart in (False, True):
        if restart:
            world.restart()
        for number, (type_, name) in enumerate(((w.SIGNAL, "poke"), (w.UPDATE, "change"), ("order.paid", None))):
            extensions = {} if name is None else {w.X_NAME: name}
            event = WireEvent(f"m-{restart}-{number}", "/x", type_, "i", b"1", "2026-01-01T00:00:00Z", extensions)
            world.send(event)
        world.step()
    assert world.instances["i"].status == "compensating"
    world.result(next(row for row in world.outbox if ("ce_romancyactivityid", "undo:charge:1") in row.headers))
    world.run(restarts=True)
    assert world.undone() == UNDONE
