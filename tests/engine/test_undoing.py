"""What a compensation is defined with and called with: names, bytes, sealed values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest

from romancy_stream.activity import activity, define_activity
from romancy_stream.context import WorkflowContext
from romancy_stream.engine.failure import workflow_failed
from romancy_stream.engine.parameters import Parameters
from romancy_stream.engine.undoing import named_call, shared_names, with_result
from romancy_stream.errors import ActivityError, TerminalError
from romancy_stream.payloads import Payloads
from romancy_stream.registry import Registry
from romancy_stream.workflow import workflow
from tests.engine.test_saga import UNDONE, Shop, charge, order, reserve, tell


@activity
async def unpick(value: int, result: int) -> None:
    raise AssertionError("activities run in workers")


@activity(compensate=unpick)
async def pick(value: int) -> int:
    raise AssertionError("activities run in workers")


@workflow
async def picks(ctx: WorkflowContext, value: int) -> None:
    """Of a golden history: compensations of both sorts, and an activity that the code gives up."""
    ctx.on_rollback(unpick, 0, result=0)
    for n in range(value):
        await pick(n)
    _, others = await asyncio.wait(
        [asyncio.ensure_future(pick(n)) for n in (10, 11)], return_when=asyncio.FIRST_COMPLETED
    )
    for each in others:
        each.cancel()
    await ctx.sleep(1)
    raise ValueError("enough")


# -- definitions ------------------------------------------------------------------------------------------------------
def _parameters(function: Callable[..., Any]) -> Parameters:
    return Parameters(function, skip=0, what=f"activity {function.__name__!r}")


def test_a_compensation_that_needs_what_the_activity_has_not_is_refused_at_definition() -> None:
    @activity
    async def needs_more(sku: str, warehouse: str) -> None: ...

    def positional(sku: str, /) -> None: ...
    def original(sku: str) -> None: ...

    with pytest.raises(TypeError, match=r"'needs_more', which needs 'warehouse': .*on_rollback"):

        @activity(compensate=needs_more)
        async def takes_less(sku: str) -> None: ...

    with pytest.raises(TypeError, match="takes an activity"):
        define_activity(original, compensate=print)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="positional-only"):
        shared_names(_parameters(original), _parameters(positional))


def test_defaults_and_results_need_no_argument() -> None:
    def undo(sku: str, *, note: str = "", result: int) -> None: ...
    def do(sku: str, count: int, result: int = 0) -> None: ...

    assert shared_names(_parameters(do), _parameters(undo)) == ("sku",)


def test_on_rollback_takes_a_call_of_an_activity() -> None:
    errors = []

    @workflow
    async def wrong(ctx: WorkflowContext) -> None:
        on_rollback: Any = ctx.on_rollback
        for call in ((tell,), (print, 1)):
            try:
                on_rollback(*call)
            except TypeError as error:
                errors.append(str(error))

    world = Shop(wrong)
    world.start("wrong")
    world.run()
    assert world.instances["i"].status == "completed"
    assert len(errors) == 2
    assert "on_rollback takes an activity" in errors[1]


def test_ids_of_registered_compensations_give_way_to_manual_ids() -> None:
    @workflow
    async def clash(ctx: WorkflowContext) -> None:
        await charge.with_options(activity_id="rollback:1")("1")
        ctx.on_rollback(tell, "x")
        raise KeyError("y")

    world = Shop(clash)
    world.start("clash")
    world.run(restarts=True)
    assert world.undone() == ["rollback:2", "rollback:1"]


def test_a_compensation_is_registered_with_its_activity() -> None:
    registry = Registry()
    registry.add_activity(reserve)
    assert set(registry.activities) == {"reserve", "release"}


# -- bytes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "result", "expected"),
    [
        ([], b"1", b'{"args":[],"kwargs":{"result":1}}'),
        ([("a", b"1.10")], b'{"x":1e2}', b'{"args":[],"kwargs":{"a":1.10,"result":{"x":1e2}}}'),
        ([("a", b'{"kwargs":{}}')], b"null", b'{"args":[],"kwargs":{"a":{"kwargs":{}},"result":null}}'),
    ],
)
def test_the_result_joins_the_arguments_byte_by_byte(
    values: list[tuple[str, bytes]], result: bytes, expected: bytes
) -> None:
    assert with_result(named_call(values), result) == expected


class Hidden:
    """Turns values round."""

    name = "hidden"

    def encode(self, raw: bytes) -> tuple[bytes, Mapping[str, str]]:
        return raw[::-1], {}

    def decode(self, data: bytes, details: Mapping[str, str]) -> bytes:
        return data[::-1]


HIDING = Payloads(codec=Hidden())


@pytest.mark.parametrize("sealed", [(True, True), (True, False), (False, True)])
def test_sealed_arguments_and_results_are_joined_by_who_opens_them(sealed: tuple[bool, bool]) -> None:
    parts = [named_call([("é", b'"},\\"args\\":"')]), b'{"x":1.0}']
    blobs: dict[str, bytes] = {}
    both = Payloads(codec=Hidden(), store="memory://undo", threshold_bytes=1)
    for sealing in (HIDING, both):
        seals = [sealing.seal(raw, "", blobs) if wanted else raw for raw, wanted in zip(parts, sealed, strict=True)]
        joined = with_result(seals[0], seals[1])
        assert sealing.open(joined, blobs) == with_result(*parts)
        assert orjson.loads(joined)["$romancy"] == {"undo": len(seals[0])}
        assert len(sealing.refs(joined)) == (sum(sealed) if sealing is both else 0)


def test_sealed_values_of_a_workflow_reach_its_compensations() -> None:
    """What history, tables and messages hold of them is sealed; a worker opens it."""
    world = Shop(order, broken={"ship:1": TerminalError("no truck")}, sealing=HIDING)
    world.start("order", "o-1")
    world.run(restarts=True)
    assert world.undone() == UNDONE
    arguments = {ref: named for ref, _, named in world.calls}
    assert arguments["undo:reserve:1"] == {"sku": "a", "count": 2, "result": {"id": "done reserve:1"}}
    [scheduled] = [e for e in world.history["i"] if e.kind == "compensation.scheduled" and e.ref == "reserve:1"]
    assert orjson.loads(scheduled.payload or b"").keys() == {"$romancy", "args", "result"}
    asked = next(event for event in world.history["i"] if event.kind == "activity.scheduled")
    assert orjson.loads(asked.attrs["compensate"]["args"])["$romancy"] == "hidden"


def test_an_error_without_a_class_here_keeps_what_could_not_be_undone() -> None:
    error = workflow_failed("i", b'{"type":"x:Y","message":"m","compensation_failed":["a:1",5]}')
    assert error.compensation_failed == ["a:1"]
    assert isinstance(error.__cause__, ActivityError)
