"""What a message costs the core, in calls of functions: the one measure of speed that is the same on every machine. A
change that makes the hot path longer fails here, and has to say what it buys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from romancy_stream import Workflow, WorkflowContext, activity, workflow
from romancy_stream.engine.inputs import EagerRoom, Input, Loaded, Received, Reported
from romancy_stream.engine.payload import TypeCodec
from romancy_stream.engine.tasks import report_event
from romancy_stream.runtime.worker_messages import Messages
from romancy_stream.wire.codec import decode
from tests.engine.world import World

LIMITS: Final = {"start, decoded": 41, "start": 325, "next result": 226, "last result": 227, "next report": 209}
"""Calls of Python and C functions, some 6 % more than on Python 3.11. A report is a result that stays here."""


@activity
async def step(number: int) -> int:
    return number


@workflow
async def three_steps(ctx: WorkflowContext, number: int) -> int:
    return await step(await step(await step(number)))


def calls(run: Callable[[], object]) -> int:
    count = 0

    def seen(frame: Any, kind: str, argument: Any) -> None:
        nonlocal count
        if kind in ("call", "c_call"):
            count += 1

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


class Burst(World):
    """Workflows that begin together and do not leave the process: each batch has a message of each."""

    def __init__(self, size: int, definition: Workflow[Any, Any], *, local: bool = False) -> None:
        super().__init__(definition, cached=10 * size)
        self.size = size
        self.local = local  # the reports of attempts
        self.reports: list[Input] = []
        self.cost: dict[str, int] = {}

    def live(self) -> dict[str, int]:
        for number in range(self.size):
            self.start("three_steps", number, f"i-{number}")
        records, self.pending = self.pending, []
        self.cost["start, decoded"] = calls(lambda: [decode(record) for record in records])
        self._batch("start", [Received(record, decode(record)) for record in records])
        for name in ("first", "next", "last"):
            reports, self.reports = self.reports, []
            self._batch(f"{name} report" if self.local else f"{name} result", reports)
        assert all(row.status == "completed" for row in self.instances.values())
        return self.cost

    def _batch(self, name: str, inputs: Sequence[Input]) -> None:
        core = self.core
        assert len(inputs) == self.size

        def decided() -> None:
            asking = core.asking(inputs)
            core.missing(asking)  # the database would know none of them
            core.missing_entities(asking)
            core.intake_keys(asking)
            core.load(Loaded())
            core.prefixes(asking)
            core.beating(asking)
            core.closings(asking, self.now_us)
            self.commit = core.handle(inputs, self.now_us, (), EagerRoom("here", {"default"}, self.size))

        self.cost[name] = calls(decided)
        self.apply(self.commit)
        worker = Messages("shop", 1, "worker", "here")
        for each in self.commit.eager:
            report = worker.completed(each.task, b"1", 5, self.now_us)
            record = self.record("results", 0, report_event(report, "/romancy/shop", "here"))
            self.reports.append(Reported(0, report) if self.local else Received(record, decode(record)))


@pytest.fixture(scope="module")
def cost() -> dict[str, float]:
    """Of one message: what a hundred more of them add."""
    Burst(1, three_steps).live()  # whatever is made once
    small, large = (
        {**Burst(size, three_steps).live(), **Burst(size, three_steps, local=True).live()} for size in (100, 200)
    )
    return {name: (large[name] - small[name]) / 100 for name in small}


@pytest.mark.parametrize("what", LIMITS)
def test_a_message_costs_no_more_than_it_did(cost: dict[str, float], what: str) -> None:
    assert cost[what] <= LIMITS[what]


@dataclass
class Line:
    number: int
    name: str
    tags: list[str]


def lines(count: int) -> list[dict[str, Any]]:
    return [{"number": number, "name": f"line {number}", "tags": ["a", "b"]} for number in range(count)]


def nested(value: Any, levels: int) -> Any:
    return {"in": nested(value, levels - 1)} if levels else value


@pytest.mark.parametrize(
    ("declared", "value", "each"),
    [
        pytest.param(dict[str, Any], {"words": ["word"] * 1_000}, 0, id="texts"),
        pytest.param(list[Any], lines(1_000), 5, id="plain objects"),
        pytest.param(dict[str, Any], nested([*lines(1_000), (1,)], 20), 60, id="one tuple, far down"),
        pytest.param(list[Line], [Line(**line) for line in lines(1_000)], 40, id="records"),
    ],
)
def test_what_is_in_a_large_payload_costs_few_calls_each(declared: Any, value: Any, each: int) -> None:
    codec = TypeCodec(declared)
    raw = codec.encode(value)
    assert calls(lambda: codec.encode(value)) + calls(lambda: codec.decode(raw)) <= 200 + 1_000 * each
