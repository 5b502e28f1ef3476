"""Payloads that are encrypted or kept elsewhere, in a world without I/O: code sees what was meant, the log does not
hold it; what cannot be opened halts one instance and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest

from romancy_stream import (
    Encryption,
    Payloads,
    RetryPolicy,
    TerminalError,
    activity,
)
from romancy_stream.context import WorkflowContext
from romancy_stream.engine import history as h
from romancy_stream.engine.commit import ActivityKey, RecordedResult
from romancy_stream.engine.sealing import PLAIN, Sealing
from romancy_stream.engine.undoing import with_result
from romancy_stream.interaction import query, signal, update
from romancy_stream.testing.tables import MemoryVault
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import Workflow, workflow
from tests.engine.world import World

TIME = "2026-01-01T00:00:00Z"
numbers = itertools.count()
KEYS = {name: bytes([number]) * 32 for number, name in enumerate(("k1", "k2"), start=1)}
SECRET = "the-secret"
"""In every value of these tests. Nothing that is written down may hold it."""


def payloads(*, keys: Sequence[str] = ("k1",), threshold_bytes: int | None = None) -> Payloads:
    """No keys: nothing is encrypted. A threshold: the world is the store."""
    codec = Encryption({name: KEYS[name] for name in keys}) if keys else None
    if threshold_bytes is None:
        return Payloads(codec=codec)
    return Payloads(codec=codec, store=MemoryVault({}), threshold_bytes=threshold_bytes)


SORTS = {
    "encrypted": payloads(),
    "kept": payloads(keys=(), threshold_bytes=5),
    "both": payloads(threshold_bytes=1),
}
every_sort = pytest.mark.parametrize("sealing", SORTS.values(), ids=SORTS.keys())
crashes = pytest.mark.parametrize("restarts", [False, True], ids=["calm", "crashes"])


def world(*workflows: Any, sealing: Sealing, answers: Any = None, **options: Any) -> World:
    return World(*(Workflow.of(each) for each in workflows), sealing=sealing, answers=answers, **options)


def written(here: World) -> Iterator[bytes]:
    """Everything that a database or a broker has of it, but events and errors."""
    for events in here.history.values():
        for event in events:
            yield event.payload or b""
            yield orjson.dumps(event.attrs)
    for row in here.instances.values():
        yield from (row.input or b"", row.output or b"")
    for item in here.items.values():
        yield item.payload or b""
    for result in here.results.values():
        yield result.result or b""
    for out in here.outbox:
        yield out.value or b""


def say(here: World, type_: str, name: str, data: Any, instance_id: str = "i") -> WireEvent:
    event = WireEvent(f"{name}-{next(numbers)}", "/test", type_, instance_id, here.sealed(data), TIME, {w.X_NAME: name})
    here.send(event, here.part_of(instance_id))
    return event


def start(here: World, name: str, input: Any, instance_id: str = "i") -> None:
    event = WireEvent(
        f"start-{instance_id}", "/test", w.START, instance_id, here.sealed(input), TIME, {w.X_WORKFLOW: name}
    )
    here.send(event, here.part_of(instance_id))


# -- everything at once ------------------------------------------------------------------------------------------------
@activity
async def unbook(seat: str, result: str) -> None:
    raise AssertionError("activities run in workers")


@activity(compensate=unbook)
async def book(seat: str) -> str:
    raise AssertionError("activities run in workers")


@activity(retry=RetryPolicy.none())
async def pay(amount: str) -> str:
    raise AssertionError("activities run in workers")


@workflow
async def small(ctx: WorkflowContext, name: str) -> str:
    return f"{name} of a child"


@workflow(name="Trip")
class Trip:
    def __init__(self) -> None:
        self.notes: list[str] = []

    async def run(self, ctx: WorkflowContext, name: str) -> dict[str, Any]:
        await ctx.subscribe("news")
        await ctx.subscribe("mine", "direct")
        ticket = await book(name)
        child = await ctx.child(small, name)
        ctx.publish("news", f"{name} to all")
        ctx.send_to(ctx.instance_id, "mine", f"{name} to me")
        news = (await ctx.receive("news")).data
        mine = (await ctx.receive("mine")).data
        await ctx.wait_condition(lambda: len(self.notes) == 2)
        try:
            await pay(name)
        except TerminalError:
            return {"ticket": ticket, "child": child, "news": news, "mine": mine, "notes": self.notes}
        raise TerminalError("nobody can pay here")

    @signal
    async def note(self, text: str) -> None:
        self.notes.append(text)

    @update
    async def ask(self, text: str) -> str:
        self.notes.append(text)
        return f"{text}, answered"

    @query
    def count(self) -> int:
        return len(self.notes)


def trip_answers(tasks: list[Any]) -> dict[str, Any]:
    def refuse(*_: Any) -> None:
        raise TerminalError("no money")

    def booked(_: Any, args: list[Any]) -> str:
        tasks.append(args)
        return f"ticket of {args[0]}"

    return {"book": booked, "pay": refuse}


@crashes
@every_sort
def test_code_sees_what_was_meant_and_nothing_that_is_written_holds_it(sealing: Payloads, restarts: bool) -> None:
    tasks: list[Any] = []
    here = world(Trip, small, sealing=sealing, answers=trip_answers(tasks), partitions=5, cached=1)
    start(here, "Trip", SECRET)
    here.run(restarts=restarts)
    say(here, w.SIGNAL, "note", f"{SECRET} 1")
    here.run(restarts=restarts)
    asked = say(here, w.UPDATE, "ask", f"{SECRET} 2")
    here.run(restarts=restarts)
    assert here.output() == {
        "ticket": f"ticket of {SECRET}",
        "child": f"{SECRET} of a child",
        "news": f"{SECRET} to all",
        "mine": f"{SECRET} to me",
        "notes": [f"{SECRET} 1", f"{SECRET} 2"],
    }
    assert tasks == [[SECRET]]
    [answer] = [e for e in here.events if e.type == w.ANSWERED and e.extensions[w.X_CAUSATION] == asked.id]
    result = (answer.data or b"").removeprefix(b'{"ok":true,"result":')[:-1]
    assert here.opened(result) == f"{SECRET} 2, answered"
    assert not [raw for raw in written(here) if SECRET.encode() in raw]
    assert not here.dead_letters
    here.check_projections()


# -- compensations -----------------------------------------------------------------------------------------------------
@workflow
async def doomed(ctx: WorkflowContext, name: str) -> None:
    await book(name)
    raise TerminalError("no")


@crashes
@every_sort
def test_a_compensation_gets_arguments_and_result_each_sealed_on_its_own(sealing: Payloads, restarts: bool) -> None:
    here = world(doomed, sealing=sealing, answers=trip_answers([]), partitions=3, cached=1)
    start(here, "doomed", SECRET)
    here.run(restarts=restarts)
    [task] = [row for row in here.outbox if dict(row.headers).get(f"ce_{w.X_ACTIVITY}") == "unbook"]
    assert here.opened(task.value) == {"args": [], "kwargs": {"seat": SECRET, "result": f"ticket of {SECRET}"}}
    here.result(task, None)
    here.run(restarts=restarts)
    assert here.instances["i"].status == "failed"
    assert not [raw for raw in written(here) if SECRET.encode() in raw]


# -- from run to run ---------------------------------------------------------------------------------------------------
@workflow
async def again(ctx: WorkflowContext, name: str, run: int) -> list[str]:
    if run == 1:
        await ctx.subscribe("mine", "direct")
        await ctx.sleep(60)
        await ctx.recur(name, 2)
    await ctx.sleep(60)
    return [name, (await ctx.receive("mine")).data, (await ctx.receive("mine")).data]


@crashes
@every_sort
def test_unread_messages_are_sealed_on_their_way_to_the_next_run(sealing: Payloads, restarts: bool) -> None:
    here = world(again, sealing=sealing, partitions=3, cached=1)
    start(here, "again", {"name": SECRET, "run": 1})
    here.run(restarts=restarts, until_us=here.now_us)
    for number in (1, 2):
        data, mine = here.sealed(f"{SECRET} {number}"), {w.X_CHANNEL: "mine"}
        here.send(WireEvent(f"m{number}", "/test", w.CHANNEL_PUBLISH, "i", data, TIME, mine), here.part_of("i"))
    here.run(restarts=restarts)
    assert here.instances["i"].run == 2
    assert here.output() == [SECRET, f"{SECRET} 1", f"{SECRET} 2"]
    assert not [raw for raw in written(here) if SECRET.encode() in raw]


@workflow
async def steps(ctx: WorkflowContext, name: str) -> list[str]:
    found = [await book(name), await ctx.child(small, name)]
    await ctx.sleep(60)
    return found


@crashes
@every_sort
def test_a_reset_run_opens_what_the_run_before_has_sealed(sealing: Payloads, restarts: bool) -> None:
    here = world(steps, small, sealing=sealing, answers=trip_answers([]), partitions=3, cached=1)
    start(here, "steps", SECRET)
    here.run(until_us=here.now_us)
    here.restart()
    here.send(WireEvent("reset", "/test", w.RESET, "i", None, TIME, {}), here.part_of("i"))
    here.run(restarts=restarts)
    assert here.instances["i"].run == 2
    assert here.output() == [f"ticket of {SECRET}", f"{SECRET} of a child"]
    assert h.WORKFLOW_PARKED not in here.kinds()


@every_sort
def test_a_fork_of_a_finished_instance_opens_its_history(sealing: Payloads) -> None:
    here = world(steps, small, sealing=sealing, answers=trip_answers([]), partitions=3, cached=1)
    start(here, "steps", SECRET)
    here.run()
    point = next(event.seq for event in here.run_of("i", 1) if event.kind == h.CHILD_COMPLETED)
    which = {w.X_INSTANCE: "i", w.X_RUN: "1", w.X_SEQUENCE: str(point)}
    here.send(WireEvent("fork", "/test", w.FORK, "j", None, TIME, which), here.part_of("j"))
    here.run()
    assert here.output("j") == [f"ticket of {SECRET}", f"{SECRET} of a child"]
    assert h.WORKFLOW_PARKED not in here.kinds("j")


@every_sort
def test_a_replay_opens_what_its_own_batch_has_sealed(sealing: Payloads) -> None:
    here = world(Trip, small, sealing=sealing, answers=trip_answers([]))
    start(here, "Trip", SECRET)
    here.run()
    here.send(WireEvent("s", "/test", w.SIGNAL, "i", orjson.dumps(SECRET), TIME, {w.X_NAME: "note"}))
    here.send(WireEvent("reset", "/test", w.RESET, "i", None, TIME))
    here.run()
    say(here, w.SIGNAL, "note", SECRET)
    here.run()
    assert here.instances["i"].run == 2
    assert here.output()["notes"] == [SECRET, SECRET]
    assert h.WORKFLOW_PARKED not in here.kinds()


@every_sort
def test_a_history_is_opened_in_a_later_batch_than_the_one_that_read_it(sealing: Payloads) -> None:
    here = world(steps, small, sealing=sealing)
    start(here, "steps", SECRET)
    here.run()
    here.restart()
    here.result(here.outbox[-1], error=RuntimeError("not today"))  # its code does not hear of it
    here.run()
    here.result(here.outbox[-1], f"ticket of {SECRET}")
    here.run()
    assert here.output()[0] == f"ticket of {SECRET}"
    assert h.WORKFLOW_PARKED not in here.kinds()


# -- what a claimed key holds ------------------------------------------------------------------------------------------
@workflow
async def once(ctx: WorkflowContext, name: str) -> str:
    return await pay(name)


@every_sort
def test_a_recorded_result_that_the_engine_comes_upon_is_opened(sealing: Payloads) -> None:
    """The worker's transaction was first, and then its report said something else."""
    here = world(once, sealing=sealing, answers={"pay": trip_answers([])["pay"]})
    start(here, "once", SECRET)
    key = ActivityKey("i", 1, "pay:1")
    here.results[key] = RecordedResult(key, 1, "completed", here.sealed(f"{SECRET} paid"), "w", here.now_us)
    here.run()
    assert here.output() == f"{SECRET} paid"


# -- replay ------------------------------------------------------------------------------------------------------------
def test_replay_keeps_nothing_that_was_kept_before() -> None:
    """With encryption a payload that is sealed again is another blob."""
    kept = []
    for restarts in (False, True):
        here = world(Trip, small, sealing=SORTS["both"], answers=trip_answers([]), partitions=5, cached=1)
        start(here, "Trip", SECRET)
        say(here, w.SIGNAL, "note", "1")
        here.run(restarts=restarts)
        say(here, w.SIGNAL, "note", "2")
        here.run(restarts=restarts)
        assert here.instances["i"].status == "completed"
        kept.append(len(here.blobs))
    assert kept[0] == kept[1]


# -- what cannot be opened ---------------------------------------------------------------------------------------------
@workflow
async def patient(ctx: WorkflowContext, name: str) -> str:
    ticket = await book(name)
    await ctx.sleep(60)
    return ticket


def waiting(sealing: Payloads) -> World:
    here = world(patient, small, sealing=sealing, answers=trip_answers([]))
    start(here, "patient", SECRET)
    here.run(until_us=here.now_us + 1_000_000)
    return here


def parked(here: World) -> str:
    message = here.instances["i"].parked
    assert message is not None
    return message


def use(here: World, sealing: Sealing) -> None:
    """Another process, with other keys."""
    here.config = replace(here.config, sealing=sealing)
    here.restart()


def test_a_key_that_is_missing_halts_the_instance_until_it_is_back() -> None:
    here = waiting(payloads(keys=("k1",)))
    use(here, payloads(keys=("k2",)))
    start(here, "small", SECRET, "j")
    here.run()
    assert "'k1'" in parked(here)
    assert here.output("j") == f"{SECRET} of a child"
    use(here, payloads(keys=("k1", "k2")))
    here.run()
    assert here.output() == f"ticket of {SECRET}"
    here.check_projections()


def test_an_app_without_payloads_halts_what_it_cannot_read() -> None:
    here = waiting(payloads())
    use(here, PLAIN)
    here.run()
    assert "payloads=Payloads" in parked(here)
    use(here, payloads())
    here.run()
    assert here.output() == f"ticket of {SECRET}"


@pytest.mark.parametrize("change", ["missing", "changed"])
def test_a_blob_that_is_missing_or_changed_halts_the_instance_until_it_is_back(change: str) -> None:
    here = waiting(SORTS["kept"])
    blobs = dict(here.blobs)
    if change == "missing":
        here.blobs.clear()
    else:
        here.blobs.update(dict.fromkeys(blobs, b'"something else"'))
    here.restart()
    here.run()
    assert ("is not in the store" if change == "missing" else "was changed in the store") in parked(here)
    here.blobs.update(blobs)
    here.restart()
    here.run()
    assert here.output() == f"ticket of {SECRET}"


def test_a_live_instance_halts_at_the_input_that_it_cannot_read_and_gets_it_later() -> None:
    here = world(patient, sealing=SORTS["kept"])
    start(here, "patient", SECRET)
    here.run()
    [task] = [row for row in here.outbox if ".tasks." in row.topic]
    here.result(task, f"ticket of {SECRET}")
    lost = {name: here.blobs.pop(name) for name in list(here.blobs) if SECRET.encode() in here.blobs[name]}
    here.run()
    assert "is not in the store" in parked(here)
    here.blobs.update(lost)
    here.restart()
    here.run()
    assert here.output() == f"ticket of {SECRET}"


def test_ciphertext_that_was_changed_in_the_log_halts_the_instance() -> None:
    here = waiting(payloads())
    here.core.drop(here.core.owned)
    events = here.history["i"]
    at = next(index for index, event in enumerate(events) if event.kind == h.ACTIVITY_COMPLETED)
    told = orjson.loads(events[at].payload or b"")
    told["data"] = told["data"][:-8] + ("AAAAAAA=" if told["data"][-8:] != "AAAAAAA=" else "BBBBBBA=")
    events[at] = replace(events[at], payload=orjson.dumps(told))
    here.restart()
    here.run()
    assert "was changed" in parked(here)


# -- keys and codecs change --------------------------------------------------------------------------------------------
def test_keys_rotate_while_instances_run() -> None:
    here = waiting(payloads(keys=("k1",)))
    use(here, payloads(keys=("k1", "k2")))
    start(here, "small", SECRET, "j")
    here.run()
    assert here.output() == f"ticket of {SECRET}"
    assert here.output("j") == f"{SECRET} of a child"
    keys = {i: orjson.loads(here.instances[i].output or b"")["key"] for i in ("i", "j")}
    assert keys == {"i": "k2", "j": "k2"}
    assert orjson.loads(here.run_of("i", 1)[0].payload or b"")["key"] == "k1"


def test_what_was_written_open_is_read_when_encryption_comes() -> None:
    here = world(patient, sealing=PLAIN, answers=trip_answers([]))
    start(here, "patient", SECRET)
    here.run(until_us=here.now_us + 1_000_000)
    use(here, payloads())
    here.run()
    assert here.output() == f"ticket of {SECRET}"
    assert here.instances["i"].input == orjson.dumps(SECRET)
    assert SECRET.encode() not in (here.instances["i"].output or b"")


@every_sort
def test_what_others_send_open_is_sealed_when_it_comes(sealing: Payloads) -> None:
    here = world(Trip, small, sealing=sealing, answers=trip_answers([]))
    here.start("Trip", SECRET)
    here.send(WireEvent("s1", "/test", w.SIGNAL, "i", orjson.dumps(SECRET), TIME, {w.X_NAME: "note"}))
    here.send(WireEvent("s2", "/test", w.UPDATE, "i", orjson.dumps(SECRET), TIME, {w.X_NAME: "ask"}))
    here.run()
    assert here.output()["notes"] == [SECRET, SECRET]
    assert not [raw for raw in written(here) if SECRET.encode() in raw]


# -- junk --------------------------------------------------------------------------------------------------------------
class Loose(Payloads):
    """With a codec that anybody can write, and that believes what it reads."""

    def __init__(self) -> None:
        super().__init__(codec=Backwards(), store=MemoryVault({}), threshold_bytes=1_000)


class Backwards:
    name = "backwards"

    def encode(self, raw: bytes) -> tuple[bytes, Mapping[str, str]]:
        return raw[::-1], {}

    def decode(self, data: bytes, details: Mapping[str, str]) -> bytes:
        if data.startswith(b"crash"):
            raise ZeroDivisionError("in somebody's codec")
        return data[::-1]


JUNK = [
    b'{"$romancy":1}',
    b'{"$romancy":null,"data":"x"}',
    b'{"$romancy":["blob"]}',
    b'{"$romancy":{"deep":[[[[[]]]]]},"data":"x"}',
    b'{"$romancy":"blob"}',
    b'{"$romancy":"blob","name":"../../etc/passwd"}',
    b'{"$romancy":"blob","name":"' + b"0" * 64 + b'"}',
    b'{"$romancy":"blob","name":["' + b"0" * 64 + b'"]}',
    b'{"$romancy":"aes-256-gcm"}',
    b'{"$romancy":"aes-256-gcm","key":"k1","data":"not base64"}',
    b'{"$romancy":"aes-256-gcm","key":"k1","data":""}',
    b'{"$romancy":"aes-256-gcm","key":{"a":1},"data":"AAAA"}',
    b'{"$romancy":"aes-256-gcm","key":"k1","data":"' + b"A" * 80 + b'"}',
    b'{"$romancy":"nobody\'s","data":"AAAA"}',
    b'{"$romancy":{"undo":5},"args":1,"result":2}',
    b'{"$romancy":{"undo":"x"}}',
    b'{"$romancy":{"undo":999999},"args":[],"result":[]}',
    b'{"$romancy":"backwards","data":"Y3Jhc2g="}',  # crash
    b'{"$romancy":"backwards","data":"W1tb"}',  # [[[, no JSON
    b'{"$romancy":"backwards","data":"ImEAYiI="}',  # a NUL
    b'{"$romancy":"backwards","data":"fTE6InljbmFtb3IkIns="}',  # sealed again
]
NAMED: dict[str, dict[str, str]] = {
    w.START: {w.X_WORKFLOW: "small"},
    w.SIGNAL: {w.X_NAME: "note"},
    w.UPDATE: {w.X_NAME: "ask"},
    w.CHANNEL_PUBLISH: {w.X_CHANNEL: "mine"},
    w.TO_INSTANCE: {},
    "an.event": {},
}
PAIRS = b'{"$romancy":{"undo":%d},"args":%b,"result":2}'


def nested_pairs() -> bytes:
    raw = b"1"
    for _ in range(200):
        raw = PAIRS % (len(raw), raw)
    return raw


@pytest.mark.parametrize("sealing", [PLAIN, *SORTS.values(), Loose()], ids=["plain", *SORTS, "loose"])
def test_junk_that_looks_sealed_becomes_dead_letters_and_harms_nobody(sealing: Sealing) -> None:
    here = world(Trip, small, sealing=sealing, answers=trip_answers([]), event_ttl_s=60.0)
    start(here, "Trip", SECRET)
    here.run()
    junk = [*JUNK, with_result(JUNK[6], JUNK[9])]
    if sealing is not PLAIN:
        junk.append(nested_pairs())
    bad = set()
    for number, raw in enumerate(junk):
        for type_, extensions in NAMED.items():
            subject = f"new-{number}" if type_ == w.START else "i"
            event = WireEvent(f"{type_}-{number}", "/bad", type_, subject, raw, TIME, extensions)
            here.send(event, here.part_of(subject))
            bad.add(event.id)
        here.run()
    assert here.instances["i"].parked is None
    assert {letter.event_id for letter in here.dead_letters} == bad
    for number in (1, 2):
        say(here, w.SIGNAL, "note", f"{SECRET} {number}")
    here.run()
    assert here.output()["notes"] == [f"{SECRET} 1", f"{SECRET} 2"]
    here.check_projections()


def test_a_sealed_start_of_a_workflow_that_is_not_here_says_so() -> None:
    here = world(small, sealing=payloads())
    start(here, "Trip", SECRET)
    here.run()
    assert here.rejections["i"].reason == "unknown_workflow"


def test_a_signal_that_cannot_be_read_is_refused_though_the_code_is_elsewhere() -> None:
    """Nobody would notice before the code comes, and then it would halt."""
    here = world(Trip, small, sealing=payloads(), answers=trip_answers([]))
    start(here, "Trip", SECRET)
    here.run()
    here.workflows.pop("Trip")
    here.restart()
    here.send(WireEvent("bad", "/bad", w.SIGNAL, "i", JUNK[10], TIME, {w.X_NAME: "note"}))
    here.run()
    assert [letter.event_id for letter in here.dead_letters] == ["bad"]
