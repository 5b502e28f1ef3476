"""Workflow definitions, and what ctx does, on the real core."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from romancy_stream import (
    ConfigurationError,
    InvalidInputError,
    PayloadError,
    Workflow,
    WorkflowContext,
    workflow,
)
from romancy_stream.engine import history as h
from romancy_stream.workflow import Starter, StartOptions, define_workflow
from tests.api.driving import START_US, Driven


class Order(BaseModel):
    id: str
    total: Decimal


@workflow
async def checkout(ctx: WorkflowContext, order: Order) -> Order:
    """Takes the money."""
    return Order(id=order.id.upper(), total=order.total * 2)


def test_decorators_with_and_without_parentheses() -> None:
    async def f(ctx: WorkflowContext) -> None: ...

    plain, called, named = workflow(f), workflow()(f), workflow(name="other", event_handler=True)(f)
    assert [(w.name, w.event_handler) for w in (plain, called, named)] == [("f", False), ("f", False), ("other", True)]
    assert isinstance(define_workflow(f), Workflow)
    assert (checkout.name, checkout.__name__, checkout.__doc__) == ("checkout", "checkout", "Takes the money.")


def not_async(ctx: WorkflowContext) -> None: ...


async def generator(ctx: WorkflowContext) -> Any:
    yield 1


async def no_parameter() -> None: ...


async def other_first_parameter(order: Order) -> None: ...


async def keyword_ctx(*, ctx: WorkflowContext) -> None: ...


async def variadic(ctx: WorkflowContext, *orders: Order) -> None: ...


class CallableObject:
    async def __call__(self, ctx: WorkflowContext) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        not_async,
        generator,
        no_parameter,
        other_first_parameter,
        keyword_ctx,
        variadic,
        CallableObject(),
        CallableObject,
        5,
    ],
)
def test_anything_else_is_a_type_error_at_definition(function: Any) -> None:
    with pytest.raises(TypeError):
        workflow(function)


def test_ctx_may_be_annotated_in_any_way_or_not_at_all() -> None:
    async def bare(ctx, order: Order) -> None: ...  # type: ignore[no-untyped-def]
    async def any_name(context, order: Order) -> None: ...  # type: ignore[no-untyped-def]
    async def quoted(c: "WorkflowContext", order: Order) -> None: ...  # noqa: UP037
    async def unresolvable(c: nowhere.WorkflowContext, order: Order) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function in (bare, any_name, quoted, unresolvable):
        made: Any = workflow(function)
        assert list(made.parameters._signature.parameters) == ["order"]


async def test_called_directly_it_runs_the_function() -> None:
    ctx: Any = object()
    assert await checkout(ctx, Order(id="a", total=Decimal(1))) == Order(id="A", total=Decimal(2))


def test_input_and_result_go_through_their_types() -> None:
    raw = checkout.encode(Order(id="a", total=Decimal("1.10")))
    assert raw == b'{"id":"a","total":"1.10"}'
    driven = Driven(checkout, raw)
    assert driven.output == b'{"id":"A","total":"2.20"}'
    assert checkout.decode_result(driven.output) == Order(id="A", total=Decimal("2.20"))


def test_a_result_of_another_type_fails_the_workflow() -> None:
    @workflow
    async def wrong(ctx: WorkflowContext) -> int:
        return "five"  # type: ignore[return-value]

    (command,) = Driven(wrong).commands
    assert command.kind == h.WORKFLOW_FAILED
    error = json.loads(command.payload or b"")
    assert error["type"] == "romancy_stream.errors:PayloadError"
    assert "workflow 'wrong', result" in error["message"]


def test_invalid_input_is_an_error_of_its_own() -> None:
    with pytest.raises(InvalidInputError, match=r"workflow 'checkout'.*total"):
        checkout.decode(b'{"id": "a"}')


def test_ctx_tells_who_and_when() -> None:
    @workflow
    async def tells(ctx: WorkflowContext) -> list[Any]:
        return [
            ctx.instance_id,
            ctx.run,
            ctx.workflow_name,
            ctx.is_replaying,
            ctx.now().isoformat(),
            str(ctx.uuid()),
            ctx.random.random(),
        ]

    def once() -> list[Any]:
        found: list[Any] = json.loads(Driven(tells).output or b"")
        return found

    first = once()
    assert first[:5] == ["i-1", 1, "tells", False, "2026-01-01T00:00:00+00:00"]
    UUID(first[5])
    assert once() == first


@pytest.mark.parametrize(
    ("duration", "after_us"), [(5, 5_000_000), (0.25, 250_000), (timedelta(days=1), 86_400_000_000), (1e-6, 1)]
)
def test_sleep_is_a_timer(duration: float | timedelta, after_us: int) -> None:
    @workflow
    async def sleeps(ctx: WorkflowContext) -> str:
        await ctx.sleep(duration)
        return ctx.now().isoformat()

    driven = Driven(sleeps)
    (command,) = driven.commands
    assert (command.kind, command.attrs) == (h.TIMER_STARTED, {"due_us": START_US + after_us})
    driven.deliver(h.TIMER_FIRED, command.ref, None, START_US + after_us)
    assert json.loads(driven.output or b"").startswith("2026-01-")


def test_a_moment_in_the_past_is_a_timer_too() -> None:
    @workflow
    async def late(ctx: WorkflowContext) -> str:
        await ctx.sleep_until(datetime(2020, 1, 1, tzinfo=UTC))
        await ctx.sleep(-5)
        return "done"

    driven = Driven(late)
    for due_us in (1_577_836_800_000_000, START_US):
        (command,) = driven.commands
        assert (command.kind, command.attrs) == (h.TIMER_STARTED, {"due_us": due_us})
        driven.deliver(h.TIMER_FIRED, command.ref, None)
    assert driven.output == b'"done"'


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ctx: ctx.sleep_until(datetime(2030, 1, 1)), "aware"),
        (lambda ctx: ctx.sleep(float("nan")), "finite"),
        (lambda ctx: ctx.sleep(float("inf")), "finite"),
        (lambda ctx: ctx.sleep(1e12), "at most"),
    ],
)
def test_bad_times_are_value_errors(call: Any, message: str) -> None:
    @workflow
    async def bad(ctx: WorkflowContext) -> str:
        try:
            await call(ctx)
        except ValueError as error:
            return str(error)
        return "no error"

    assert message in (Driven(bad).output or b"").decode()


def test_publish_event_is_a_command() -> None:
    @workflow
    async def publishes(ctx: WorkflowContext) -> None:
        ctx.publish_event(type="order.saved", data=Order(id="a", total=Decimal("1.10")), subject="a", topic="orders")
        ctx.publish_event(type="ping")

    first, second, last = Driven(publishes).commands
    assert first.kind == second.kind == h.EVENT_PUBLISHED
    assert first.attrs == {"type": "order.saved", "subject": "a", "topic": "orders"}
    assert first.payload == b'{"id":"a","total":"1.10"}'
    assert (second.attrs, second.payload) == ({"type": "ping"}, None)
    assert last.payload == b"null"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"type": "romancy.workflow.start"}, ValueError),
        ({"type": ""}, ValueError),
        ({"type": "a", "source": ""}, ValueError),
        ({"type": "a", "topic": 5}, ValueError),
        ({"type": "a", "data": object()}, PayloadError),
        ({"type": "a", "data": float("nan")}, PayloadError),
    ],
)
def test_events_that_cannot_be_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    @workflow
    async def publishes(ctx: WorkflowContext) -> str:
        with pytest.raises(error):
            ctx.publish_event(**arguments)
        return "refused"

    assert Driven(publishes).output == b'"refused"'


# -- starting --------------------------------------------------------------------------------------------------
class RecordingStarter:
    def __init__(self) -> None:
        self.started: list[tuple[StartOptions, tuple[Any, ...], dict[str, Any]]] = []

    async def start(self, workflow: Workflow[Any, Any], /, *args: Any, **kwargs: Any) -> Any:
        self.started.append((workflow.options, args, kwargs))


async def test_start_goes_to_the_app_with_its_options() -> None:
    @workflow
    async def mine(ctx: WorkflowContext, a: int, b: int = 1) -> None: ...

    with_id = mine.with_options(instance_id="m-1")
    with pytest.raises(ConfigurationError, match=r"'mine' belongs to no app"):
        await mine.start(1)
    starter: Any = RecordingStarter()
    app: Starter = starter
    mine.bind(app)
    await mine.start(1, b=2)
    await with_id.start(1)
    await with_id.with_options(on_conflict="fail").start(1)
    assert starter.started == [
        (StartOptions(None, "use_existing"), (1,), {"b": 2}),
        (StartOptions("m-1", "use_existing"), (1,), {}),
        (StartOptions("m-1", "fail"), (1,), {}),
    ]
    assert mine.options == StartOptions()


def test_a_wrapped_function_keeps_its_own_hints() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return wrapper

    @workflow
    @logged
    async def wrapped(ctx: WorkflowContext, order: Order) -> Decimal:
        return order.total

    assert Driven(wrapped, b'{"id": "a", "total": "1.5"}').output == b'"1.5"'


def test_hints_are_resolved_on_demand_and_complained_about() -> None:
    @workflow
    async def broken(ctx: WorkflowContext, order: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"workflow 'broken', parameter 'order'"):
        broken.resolve()
