"""What retry, reset and fork mean for all that a run may be in the middle of: waits, channels, children, signals,
sagas, recurring, versions, delays, parking. With crashes before each step, nothing in the cache, many partitions."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import orjson
import pytest

from romancy_stream import RetryPolicy, TerminalError, activity, workflow
from romancy_stream.context import WorkflowContext
from romancy_stream.engine.inputs import Unpark
from romancy_stream.registry import Registry
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from tests.engine.events_kit import KEYED, event, worlds
from tests.engine.saying import order as talkative
from tests.engine.saying import say
from tests.engine.test_channels import message
from tests.engine.world import World

TIME = "2026-01-01T00:00:00Z"
SOON_US = 1_000_000
_numbers = itertools.count()


def operate(here: World, type_: str, instance_id: str = "i", **extensions: Any) -> dict[str, Any]:
    """Sends a command; runs, but for timers that are not due soon; returns the answer."""
    command = WireEvent(f"op-{next(_numbers)}", "/operator", type_, instance_id, None, TIME)
    command.extensions.update({name: str(given) for name, given in extensions.items()})
    here.send(command, here.part_of(instance_id))
    soon(here)
    [answer] = [e for e in here.events if e.type == w.ANSWERED and e.extensions[w.X_CAUSATION] == command.id]
    told: dict[str, Any] = orjson.loads(answer.data or b"")
    return told


def soon(here: World) -> None:
    here.run(until_us=here.now_us + SOON_US)


def seq_of(here: World, kind: str, instance_id: str = "i") -> int:
    return here.kinds(instance_id).index(kind) + 1


# -- events ------------------------------------------------------------------------------------------------------------
@workflow
async def two_payments(ctx: WorkflowContext, number: str) -> list[str]:
    first = await ctx.wait_event("paid", match={"order": number})
    second = await ctx.wait_event("paid", match={"order": number})
    return [first.id, second.id]


@worlds
def test_a_wait_that_was_open_is_open_in_the_next_run_and_closed_in_the_last(make: Any) -> None:
    here = make(two_payments, **KEYED)
    here.start("two_payments", "7")
    soon(here)
    here.send(event("e1", {"order": "7"}))
    soon(here)
    assert operate(here, w.RESET)["run"] == 2
    assert [key[1] for key in here.members] == ["i"], "the wait of the run before is withdrawn"
    here.send(event("e2", {"order": "7"}))
    here.run()
    assert here.output() == ["e1", "e2"]
    assert not here.members
    here.check_projections()


@worlds
def test_an_event_behind_the_point_has_to_come_again(make: Any) -> None:
    here = make(two_payments, **KEYED)
    here.start("two_payments", "7")
    here.send(event("e1", {"order": "7"}))
    here.send(event("e2", {"order": "7"}))
    here.run()
    assert here.output() == ["e1", "e2"]
    assert operate(here, w.RESET, sequence=1)["run"] == 2
    assert here.instances["i"].status == "waiting_for_event"
    for number in (3, 4):
        here.send(event(f"e{number}", {"order": "7"}))
        soon(here)
    assert here.output() == ["e3", "e4"]
    here.check_projections()


# -- channels ----------------------------------------------------------------------------------------------------------
@workflow
async def two_messages(ctx: WorkflowContext, mode: str) -> list[Any]:
    await ctx.subscribe("news", mode=mode)  # type: ignore[arg-type]
    got = []
    for _ in range(2):
        got.append((await ctx.receive("news")).data)
    return got


@pytest.mark.parametrize("mode", ["broadcast", "competing"])
@worlds
def test_the_next_run_listens_where_the_last_one_listened(make: Any, mode: str) -> None:
    here = make(two_messages)
    here.start("two_messages", mode)
    soon(here)
    here.send(message("news", 1, "m1"))
    soon(here)
    assert operate(here, w.RESET)["run"] == 2
    here.send(message("news", 2, "m2"))
    here.run()
    assert here.output() == [1, 2]
    assert not [member for member in here.members if member[1] == "i"]
    here.check_projections()


@workflow
async def talks_to_itself(ctx: WorkflowContext) -> Any:
    await ctx.subscribe("news")
    ctx.publish("news", "heard")
    return (await ctx.receive("news")).data


@worlds
def test_the_next_run_hears_what_it_publishes_at_once(make: Any) -> None:
    here = make(talks_to_itself)
    here.start("talks_to_itself")
    here.run()
    joined = here.kinds().index("channel.joined sub:1") + 1
    assert operate(here, w.RESET, **{w.X_SEQUENCE: str(joined + 1)})["run"] == 2
    here.run()
    assert here.output() == "heard"


@workflow
async def one_message_a_run(ctx: WorkflowContext, had: list[Any]) -> list[Any]:
    await ctx.subscribe("news")
    had = [*had, (await ctx.receive("news")).data]
    if len(had) < 3:
        await ctx.recur(had)
    return had


@worlds
def test_a_run_that_recurs_as_soon_as_it_goes_on_still_listens(make: Any) -> None:
    here = make(one_message_a_run)
    here.start("one_message_a_run", [])
    soon(here)
    here.send(message("news", 1, "m1"))
    soon(here)
    assert here.instances["i"].run == 2
    here.send(message("news", 2, "m2"))
    soon(here)
    assert operate(here, w.FORK, "j", romancyinstance="i", romancyrun=2)["run"] == 1
    soon(here)
    assert here.instances["j"].run == 2
    here.send(message("news", 3, "m3"))
    here.run()
    assert here.output() == here.output("j") == [1, 2, 3]
    assert not here.members
    here.check_projections()


# -- signals -----------------------------------------------------------------------------------------------------------
@worlds
def test_signals_before_the_point_stay_and_those_behind_it_are_given_again(make: Any) -> None:
    here = make(talkative)
    here.start("order")
    soon(here)
    for text in "abcd":
        say(here, "note", text)
        soon(here)
    assert [kind for kind in here.kinds() if kind == "signal.received"] == ["signal.received"] * 4
    second = [number for number, kind in enumerate(here.kinds(), 1) if kind == "signal.received"][1]
    assert operate(here, w.RESET, sequence=second)["run"] == 2
    say(here, "close")
    here.run()
    assert here.output() == ["a", "b", "c", "d"]
    here.check_projections()


def test_a_fork_goes_its_own_way_behind_the_point() -> None:
    here = World(talkative)
    here.start("order")
    soon(here)
    for text in "ab":
        say(here, "note", text)
        soon(here)
    operate(here, w.FORK, "j", romancyinstance="i", romancyrun=1, sequence=seq_of(here, "signal.received"))
    for instance_id in "ij":
        say(here, "close", to=instance_id)
    here.run()
    assert (here.output("i"), here.output("j")) == (["a", "b"], ["a"])


# -- children ----------------------------------------------------------------------------------------------------------
class Flaw:
    """Of the child's code, until it is mended."""

    mended = False


@workflow
async def frail(ctx: WorkflowContext) -> str:
    await ctx.sleep(0.001)
    if not Flaw.mended:
        raise TerminalError("not yet")
    return f"run {ctx.run}"


@workflow
async def with_own_id(ctx: WorkflowContext) -> str:
    return await ctx.child(frail, instance_id="kid")


@workflow
async def with_derived_id(ctx: WorkflowContext) -> str:
    return await ctx.child(frail)


@pytest.fixture(autouse=True)
def flawed() -> None:
    Flaw.mended = False


@worlds
def test_a_parent_that_is_retried_starts_the_child_anew_that_failed(make: Any) -> None:
    here = make(with_own_id, with_derived_id, frail)
    for name, child in (("with_own_id", "kid"), ("with_derived_id", "with_derived_id:2:1")):
        Flaw.mended = False
        here.start(name, instance_id=name)
        soon(here)
        assert here.instances[name].status == "failed"
        Flaw.mended = True
        assert operate(here, w.RETRY, name)["run"] == 2
        here.run()
        assert here.output(name) == here.output(child) == f"run {here.instances[child].run}"
    assert here.instances["kid"].run == 2
    here.check_projections()


@worlds
def test_a_parent_that_is_retried_takes_the_result_of_its_child_that_was_retried(make: Any) -> None:
    here = make(with_own_id, frail)
    here.start("with_own_id")
    soon(here)
    Flaw.mended = True
    assert operate(here, w.RETRY, "kid")["run"] == 2
    assert here.output("kid") == "run 2"
    assert here.instances["i"].status == "failed", "it has ended: what becomes of the child is nothing to it"
    assert operate(here, w.RETRY, "i")["run"] == 2
    here.run()
    assert here.output() == "run 2"
    assert here.instances["kid"].run == 2, "nothing was done twice"
    here.check_projections()


@workflow
async def slow(ctx: WorkflowContext) -> str:
    await ctx.sleep(3_600)
    return f"run {ctx.run}"


@workflow
async def patient(ctx: WorkflowContext) -> str:
    child = await ctx.start_child(slow, instance_id="kid", parent_close="abandon")
    return await child.result()


@worlds
def test_a_child_that_goes_on_belongs_to_the_next_run_of_its_parent(make: Any) -> None:
    here = make(patient, slow)
    here.start("patient")
    soon(here)
    for sequence in (2, 1):  # the child is asked for again, then it is started again
        assert operate(here, w.RESET, sequence=sequence)["ok"]
    assert here.instances["i"].run == 3
    assert here.kinds("kid")[-2:] == ["workflow.adopted", "workflow.adopted"]
    here.run()
    assert here.output() == "run 1"
    here.check_projections()


@workflow(name="slow")
async def slow_twice(ctx: WorkflowContext) -> str:
    await ctx.sleep(3_600)
    if ctx.run == 1:
        await ctx.recur()
    return f"run {ctx.run}"


@pytest.mark.parametrize("child", [slow_twice, slow], ids=["recurs", "is reset"])
@worlds
def test_a_child_that_was_adopted_tells_its_parent_of_now_whatever_run_it_is_in(make: Any, child: Any) -> None:
    here = make(patient, child)
    here.start("patient")
    soon(here)
    assert operate(here, w.RESET, sequence=1)["ok"]
    if child is slow:
        assert operate(here, w.RESET, "kid", sequence=1)["ok"]
    here.run()
    assert here.output() == "run 2"
    here.check_projections()


@activity
async def who_comes() -> list[str]:
    raise AssertionError("activities run in workers")


@workflow
async def guest(ctx: WorkflowContext, name: str) -> str:
    await ctx.sleep(3_600)
    return f"{name} in run {ctx.run}"


@workflow
async def host(ctx: WorkflowContext) -> list[str]:
    names = await who_comes()
    guests = [await ctx.start_child(guest, name, instance_id=name, parent_close="abandon") for name in names]
    return [await each.result() for each in guests]


@pytest.mark.parametrize(("ended", "run"), [(False, 1), (True, 2)])
@worlds
def test_a_child_with_an_id_of_its_own_is_the_same_one_whatever_its_turn(make: Any, ended: bool, run: int) -> None:
    comes = itertools.cycle([["Ada", "Bob"], ["Cy", "Bob", "Ada"]])
    here = make(host, guest, answers={"who_comes": lambda *_: next(comes)})
    here.start("host")
    soon(here)
    if ended:
        here.run()
    assert operate(here, w.RESET, sequence=1)["run"] == 2
    here.run()
    assert here.output() == ["Cy in run 1", f"Bob in run {run}", f"Ada in run {run}"]
    here.check_projections()


@worlds
def test_one_run_has_not_two_children_under_one_id(make: Any) -> None:
    """Nobody would wait for the first of them any more."""
    comes = iter([["Ada"], ["Ada", "Ada"]])
    here = make(host, guest, answers={"who_comes": lambda *_: next(comes)})
    here.start("host")
    soon(here)
    assert operate(here, w.RESET, sequence=1)["run"] == 2
    here.run()
    assert "instance Ada exists: give the child another id" in here.error()["message"]
    assert here.output("Ada") == "Ada in run 1"
    here.check_projections()


@worlds
def test_a_child_of_another_workflow_is_not_taken_for_the_one_that_is_asked_for(make: Any) -> None:
    @workflow(name="host")
    async def changed(ctx: WorkflowContext) -> str:
        return await ctx.child(frail, instance_id="Ada")

    here = make(host, guest, frail, answers={"who_comes": lambda *_: ["Ada"]})
    here.start("host")
    soon(here)
    here.restart(changed)
    assert operate(here, w.RESET, sequence=1)["run"] == 2
    here.run()
    assert "instance Ada exists" in here.error()["message"]
    assert here.output("Ada") == "Ada in run 1"


@workflow
async def listens(ctx: WorkflowContext) -> Any:
    return (await ctx.wait_event("paid")).data


@workflow
async def has_a_listener(ctx: WorkflowContext) -> Any:
    return await ctx.child(listens, instance_id="kid")


@worlds
def test_a_fork_of_a_child_does_not_speak_for_it(make: Any) -> None:
    here = make(has_a_listener, listens)
    here.start("has_a_listener")
    soon(here)
    assert operate(here, w.FORK, "j", romancyinstance="kid", romancyrun=1, sequence=1)["ok"]
    for instance_id in ("j", "kid"):
        told = event(f"for {instance_id}", instance_id, romancyinstance=instance_id)
        here.send(told, here.part_of(instance_id))
        soon(here)
    assert [here.output(each) for each in ("j", "kid", "i")] == ["j", "kid", "kid"]
    assert here.instances["j"].parent_id is None
    here.check_projections()


def test_a_recurring_parent_has_no_claim_to_the_children_of_its_runs_before() -> None:
    @workflow
    async def again(ctx: WorkflowContext, left: int) -> None:
        await ctx.child(frail, instance_id="kid")
        await ctx.recur(left - 1)

    Flaw.mended = True
    here = World(again, frail)
    here.start("again", 3)
    here.run()
    assert "kid exists" in here.error()["message"]
    assert here.instances["i"].run == 2


# -- chance ------------------------------------------------------------------------------------------------------------
@activity
async def heads() -> str:
    raise AssertionError("activities run in workers")


@activity
async def tails() -> str:
    raise AssertionError("activities run in workers")


@workflow
async def tosses(ctx: WorkflowContext) -> list[str]:
    sides = [await (heads() if ctx.random.random() < 0.5 else tails()) for _ in range(20)]
    await ctx.sleep(3_600)
    return [*sides, str(ctx.uuid())]


@worlds
def test_code_that_lives_through_it_again_draws_the_same_numbers(make: Any) -> None:
    here = make(tosses, answers={"heads": lambda *_: "heads", "tails": lambda *_: "tails"})
    here.start("tosses")
    soon(here)
    assert operate(here, w.RESET)["run"] == 2
    assert operate(here, w.RESET)["run"] == 3
    assert operate(here, w.FORK, "j", romancyinstance="i", romancyrun=2)["run"] == 1
    assert [here.instances[each].parked for each in "ij"] == [None, None]
    here.run()
    assert here.output() == here.output("j")
    here.check_projections()


# -- sagas -------------------------------------------------------------------------------------------------------------
@activity
async def refund(order_id: str) -> None: ...


@activity(compensate=refund)
async def charge(order_id: str) -> str:
    raise AssertionError("activities run in workers")


@activity(retry=RetryPolicy.none())
async def ship(order_id: str) -> str:
    raise AssertionError("activities run in workers")


@workflow
async def saga(ctx: WorkflowContext, order_id: str) -> list[str]:
    return [await charge(order_id), await ship(order_id)]


@worlds
def test_nobody_goes_on_behind_what_has_been_undone(make: Any) -> None:
    vans = 0

    def shipping(*_: Any) -> str:
        if not vans:
            raise TerminalError("no van")
        return "shipped"

    here = make(saga, answers={"charge": lambda *_: "charged", "refund": lambda *_: None, "ship": shipping})
    here.start("saga", "o1")
    here.run()
    assert here.error()["message"] == "no van"
    vans = 1
    assert operate(here, w.RETRY)["error"]["type"].endswith("NotRetryableError")
    charged = seq_of(here, "activity.completed charge:1")
    for refused in (operate(here, w.RESET), operate(here, w.RESET, sequence=charged)):
        assert refused["reason"] == "invalid_reset_point"
        assert f"before {charged}" in refused["error"]["message"]
    assert operate(here, w.RESET, sequence=charged - 1)["run"] == 2
    here.run()
    assert here.output() == ["charged", "shipped"]
    assert [name for name, *_ in here.attempts] == ["charge:1", "ship:1", "undo:charge:1", "charge:1", "ship:1"]
    here.check_projections()


# -- recurring, versions, delays, parking ------------------------------------------------------------------------------
@workflow
async def counter(ctx: WorkflowContext, n: int) -> Any:
    await ctx.sleep(3_600)
    if n == 2:
        return [ctx.run, n]
    await ctx.recur(n + 1)


@worlds
def test_a_reset_goes_back_in_the_run_that_is(make: Any) -> None:
    here = make(counter)
    here.start("counter", 0)
    here.run(until_us=here.now_us + 2 * 3_600 * 1_000_000)
    run = here.instances["i"].run
    assert run in (2, 3)
    assert operate(here, w.RESET, sequence=1)["run"] == run + 1
    here.run()
    assert here.output() == [4, 2], "the input is that of the run that was reset"
    here.check_projections()


@workflow(name="versioned", version="1")
async def version_one(ctx: WorkflowContext) -> str:
    await ctx.sleep(3_600)
    return "one"


@workflow(name="versioned", version="2")
async def version_two(ctx: WorkflowContext) -> str:
    await ctx.sleep(3_600)
    return "two"


@pytest.mark.parametrize("partitions", [1, 5])
def test_a_run_keeps_its_version(partitions: int) -> None:
    both, newer = Registry(), Registry()
    for registry, version in ((both, version_one), (both, version_two), (newer, version_two)):
        registry.add_workflow(version)

    def deploy(registry: Registry) -> None:
        here.workflows = registry.workflows  # type: ignore[assignment]
        here.core.drop(here.core.owned)
        here.core = here._new_core()
        here.step([Unpark(row.part, row.instance_id) for row in here.instances.values() if row.parked])

    here = World(version_one, partitions=partitions)
    here.start("versioned")
    soon(here)
    deploy(both)
    assert operate(here, w.RESET, sequence=1)["run"] == 2
    assert operate(here, w.FORK, "j", romancyinstance="i", romancyrun=1)["run"] == 1
    deploy(newer)
    assert operate(here, w.RESET, sequence=1)["run"] == 3
    assert "version '1'" in (here.instances["i"].parked or "")
    deploy(both)
    here.run()
    assert (here.output("i"), here.output("j")) == ("one", "one")
    here.check_projections()


@worlds
def test_a_start_that_was_put_off_is_still_put_off(make: Any) -> None:
    here = make(frail)
    Flaw.mended = True
    begun_us = here.now_us
    here.start("frail", **{w.X_BEGIN: "2023-11-14T23:13:20Z"})  # an hour after the world began
    soon(here)
    for sequence in (1, 2):
        assert operate(here, w.RESET, sequence=sequence)["ok"]
        assert here.instances["i"].status == "waiting_for_timer"
    here.run()
    assert here.output() == "run 3"
    assert here.now_us >= begun_us + 3_600 * 1_000_000
    here.check_projections()


@worlds
def test_what_is_parked_can_be_reset_to_where_its_code_still_agrees(make: Any) -> None:
    @workflow(name="job")
    async def before(ctx: WorkflowContext) -> str:
        await asyncio.gather(ctx.sleep(3_600), ctx.sleep(1))
        return "before"

    @workflow(name="job")
    async def after(ctx: WorkflowContext) -> str:
        await ctx.sleep(60)
        return "after"

    here = make(before)
    here.start("job")
    here.run(until_us=here.now_us + 2 * SOON_US)
    here.restart(after)
    here.run()
    assert "history says" in (here.instances["i"].parked or "")
    assert operate(here, w.RESET, sequence=1)["ok"]
    here.run()
    assert here.output() == "after"
    assert here.instances["i"].parked is None
    here.check_projections()


# -- messages of the run before ----------------------------------------------------------------------------------------
def test_two_senders_of_one_id_hear_two_answers() -> None:
    here = World(frail)
    Flaw.mended = True
    here.start("frail")
    here.run()
    for source in ("/a", "/b"):
        here.send(WireEvent("c-1", source, w.RETRY, "i", None, TIME))
    here.run()
    told = [each for each in here.events if each.type == w.ANSWERED]
    assert [each.extensions[w.X_CAUSATION_SOURCE] for each in told] == ["/a", "/b"]
    assert len({each.id for each in told}) == 2
