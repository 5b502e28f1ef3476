"""Activities: the three things that a call can be, and what runs for the worker."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel

from romancy_stream import (
    Activity,
    ActivityContext,
    ActivityContextError,
    ActivityError,
    ActivityInfo,
    DuplicateActivityIdError,
    InvalidInputError,
    PayloadError,
    RetryExhaustedError,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    activity_context,
    workflow,
)
from romancy_stream.activity import attempt
from romancy_stream.engine import history as h
from romancy_stream.engine.definitions import Publication
from romancy_stream.engine.failure import encode_error, exhausted
from tests.api.driving import Driven

T = TypeVar("T")


class Receipt(BaseModel):
    id: str
    amount: Decimal


class Declined(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"declined: {code}")
        self.code = code


class MemoryBackend:
    """An attempt whose transaction is a list."""

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.callbacks: list[Callable[[], Awaitable[None] | None]] = []
        self.threads: list[str] = []
        self.the_session, self.the_sync_session = object(), object()

    def session(self) -> Any:
        return self.the_session

    def sync_session(self) -> Any:
        return self.the_sync_session

    def publish(self, publication: Publication) -> None:
        self.published.append(publication)

    def on_commit(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        self.callbacks.append(callback)

    def call_plain(self, function: Callable[[], T]) -> T:
        self.threads.append(threading.current_thread().name)
        return function()


def context(backend: MemoryBackend | None = None, **changes: Any) -> ActivityContext:
    values: dict[str, Any] = {"instance_id": "i-1", "run": 2, "activity_id": "charge:1", "activity_name": "charge"}
    return ActivityContext(ActivityInfo(**(values | changes)), backend or MemoryBackend())


@activity
async def charge(order_id: str, amount: Decimal = Decimal(1)) -> Receipt:
    return Receipt(id=order_id, amount=amount)


@activity
async def save(ctx: ActivityContext, receipt: Receipt) -> str:
    return f"{ctx.idempotency_key} {receipt.id}"


@activity(name="count", queue="slow", retry=RetryPolicy.none(), timeout=timedelta(minutes=1), total_timeout=90)
def count_words(text: str) -> int:
    return len(text.split())


@activity
def plain_with_ctx(ctx: ActivityContext, n: int) -> list[Any]:
    return [n, ctx.attempt, threading.current_thread() is threading.main_thread()]


# -- definition ------------------------------------------------------------------------------------------------
def test_definitions() -> None:
    assert (charge.name, charge.queue, charge.retry, charge.timeout_s, charge.transactional) == (
        "charge",
        "default",
        None,
        None,
        True,
    )
    assert (count_words.name, count_words.queue, count_words.retry) == ("count", "slow", RetryPolicy.none())
    assert (count_words.timeout_s, count_words.total_timeout_s) == (60.0, 90.0)
    assert [a.takes_context for a in (charge, save, count_words, plain_with_ctx)] == [False, True, False, True]
    assert [a.is_async for a in (charge, save, count_words, plain_with_ctx)] == [True, True, False, False]
    assert isinstance(activity()(count_words.function), Activity)


def test_how_ctx_is_recognised() -> None:
    async def bare(ctx, a: int) -> None: ...  # type: ignore[no-untyped-def]
    async def quoted(c: "ActivityContext", a: int) -> None: ...  # noqa: UP037
    async def data_named_ctx(ctx: int) -> None: ...
    async def unannotated(order, ctx) -> None: ...  # type: ignore[no-untyped-def]
    async def nothing() -> None: ...

    found = [Activity(function).takes_context for function in (bare, quoted, data_named_ctx, unannotated, nothing)]
    assert found == [True, True, False, False, False]


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


def variadic(*args: int) -> None: ...


def keywords(**kwargs: int) -> None: ...


class SomeClass: ...


@pytest.mark.parametrize("function", [generator, async_generator, variadic, keywords, SomeClass, SomeClass(), "charge"])
def test_anything_else_is_a_type_error_at_definition(function: Any) -> None:
    with pytest.raises(TypeError):
        activity(function)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", float("nan")),
        ("timeout", "5"),
        ("total_timeout", timedelta(0)),
        ("queue", ""),
        ("name", ""),
    ],
)
def test_bad_options_are_named(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=option):
        activity(**options)(generator_free)
    if option != "name":
        with pytest.raises(ValueError, match=option):
            charge.with_options(**options)


async def generator_free() -> None: ...


def test_methods_can_be_activities() -> None:
    class Shop:
        async def sell(self, ctx: ActivityContext, n: int) -> int:
            return n

    made: Activity[Any, Any] = Activity(Shop().sell)
    assert made.takes_context
    assert made.parameters.encode_call((1,), {}) == b'{"args":[1],"kwargs":{}}'


# -- in workflow code ------------------------------------------------------------------------------------------
def test_a_call_is_recorded_and_its_result_is_typed() -> None:
    @workflow
    async def buys(ctx: WorkflowContext) -> str:
        receipt = await charge("o-1", amount=Decimal("1.50"))
        assert isinstance(receipt, Receipt)
        return await save(receipt)

    driven = Driven(buys)
    (command,) = driven.commands
    assert (command.kind, command.ref) == (h.ACTIVITY_SCHEDULED, "charge:1")
    assert command.payload == b'{"args":["o-1","1.50"],"kwargs":{}}'
    (command,) = driven.complete("charge:1", b'{"id": "r", "amount": "1.50"}')
    assert command.payload == b'{"args":[{"id":"r","amount":"1.50"}],"kwargs":{}}'
    driven.complete("save:1", b'"saved"')
    assert driven.output == b'"saved"'


def test_options_reach_the_record() -> None:
    tuned = count_words.with_options(
        activity_id="words",
        queue="fast",
        timeout=5,
        retry=RetryPolicy.fixed(3, 0.5),
        total_timeout=timedelta(seconds=9),
    )

    @workflow
    async def counts(ctx: WorkflowContext) -> int:
        await tuned("a b")
        return await count_words("c")

    driven = Driven(counts)
    (command,) = driven.commands
    assert (command.ref, command.attrs["name"], command.attrs["queue"]) == ("words", "count", "fast")
    assert (command.attrs["timeout_s"], command.attrs["total_timeout_s"]) == (5.0, 9.0)
    assert RetryPolicy.from_json(command.attrs["policy"]).max_attempts == 3
    (command,) = driven.complete("words", b"2")
    assert (command.ref, command.attrs["queue"], command.attrs["timeout_s"]) == ("count:1", "slow", 60.0)


def test_gather_and_task_groups_start_in_order() -> None:
    @workflow
    async def many(ctx: WorkflowContext) -> list[Any]:
        first = await asyncio.gather(*(count_words(text) for text in ("a", "b c")), charge("o"))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(count_words(text)) for text in ("d", "e")]
        receipt: Any = first[2]
        return [*first[:2], receipt.id, *(task.result() for task in tasks)]

    driven = Driven(many)
    assert [command.ref for command in driven.commands] == ["count:1", "count:2", "charge:1"]
    assert driven.complete("charge:1", b'{"id": "r", "amount": "1"}') == []
    assert driven.complete("count:2", b"2") == []
    driven.complete("count:1", b"1")
    assert [command.ref for command in driven.commands] == ["count:3", "count:4"]
    driven.complete("count:4", b"4")
    driven.complete("count:3", b"3")
    assert driven.output == b'[1,2,"r",3,4]'


def test_the_id_is_taken_when_the_coroutine_first_runs() -> None:
    @workflow
    async def reversed_order(ctx: WorkflowContext) -> None:
        second, first = count_words("second"), count_words("first")
        await first
        await second

    driven = Driven(reversed_order)
    (command,) = driven.commands
    assert (command.ref, command.payload) == ("count:1", b'{"args":["first"],"kwargs":{}}')
    (command,) = driven.complete("count:1", b"1")
    assert (command.ref, command.payload) == ("count:2", b'{"args":["second"],"kwargs":{}}')


def test_a_forgotten_await_records_nothing_and_is_reported() -> None:
    @workflow
    async def forgets(ctx: WorkflowContext) -> str:
        charge("o-1")  # type: ignore[unused-coroutine]
        return "done"

    with pytest.warns(RuntimeWarning, match=r"coroutine 'charge' was never awaited"):
        driven = Driven(forgets)
    assert driven.output == b'"done"'


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TerminalError("no"), TerminalError),
        (Declined(5), Declined),
        (exhausted(encode_error(Declined(7), retryable=True), 5), RetryExhaustedError),
        (b'{"type": "com.shop.Gone", "message": "gone"}', ActivityError),
    ],
)
def test_errors_reach_the_workflow_as_what_they_were(error: Any, expected: type[Exception]) -> None:
    @workflow
    async def catches(ctx: WorkflowContext) -> list[Any]:
        try:
            await charge("o-1")
        except Exception as caught:
            cause = caught.__cause__
            return [
                type(caught).__name__,
                getattr(caught, "code", None) if isinstance(caught, Declined) else None,
                cause.code if isinstance(cause, Declined) else None,
            ]
        return []

    driven = Driven(catches)
    driven.fail("charge:1", error)
    name, code, cause_code = json.loads(driven.output or b"")
    assert name == expected.__name__
    assert code == (5 if expected is Declined else None)
    assert cause_code == (7 if expected is RetryExhaustedError else None)


def test_bad_calls_are_errors_of_the_workflow_code() -> None:
    @workflow
    async def wrong(ctx: WorkflowContext) -> list[str]:
        found = []
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: charge(),  # type: ignore[call-arg]
            lambda: charge(5),  # type: ignore[arg-type]
            lambda: charge("a", colour="red"),  # type: ignore[call-arg]
        ]
        for call in calls:
            try:
                await call()
            except (TypeError, PayloadError) as error:
                found.append(type(error).__name__)
        await charge.with_options(activity_id="one")("a")
        try:
            await charge.with_options(activity_id="one")("a")
        except DuplicateActivityIdError as error:
            found.append(type(error).__name__)
        return found

    driven = Driven(wrong)
    assert [command.ref for command in driven.commands] == ["one"]
    driven.complete("one", b'{"id": "r", "amount": "1"}')
    assert driven.output == b'["TypeError","PayloadError","TypeError","DuplicateActivityIdError"]'


def test_activity_context_is_not_for_workflow_code() -> None:
    @workflow
    async def asks(ctx: WorkflowContext) -> str:
        try:
            activity_context()
        except ActivityContextError:
            return "refused"
        return "given"

    async def inside_an_attempt() -> bytes | None:
        return Driven(asks).output

    made: Activity[Any, bytes] = Activity(inside_an_attempt)
    assert asyncio.run(made.run_attempt(context(), b'{"args": [], "kwargs": {}}')) == b'"InJlZnVzZWQi"'


# -- elsewhere -------------------------------------------------------------------------------------------------
async def test_outside_the_call_runs_the_function() -> None:
    assert await charge("o-1") == Receipt(id="o-1", amount=Decimal(1))
    assert await count_words("a b c") == 3
    call = count_words("a b")
    assert inspect.iscoroutine(call)
    assert await call == 2


async def test_outside_an_activity_with_ctx_says_what_it_needs() -> None:
    for call in (save(Receipt(id="a", amount=Decimal(1))), plain_with_ctx(1)):
        with pytest.raises(ActivityContextError, match=r"testing\.activity_context"):
            await call
    with pytest.raises(ActivityContextError):
        activity_context()


async def test_a_wrong_call_is_a_type_error_at_the_call() -> None:
    with pytest.raises(TypeError, match="activity 'charge'"):
        charge()  # type: ignore[call-arg, unused-coroutine]


async def test_inside_another_activity_it_is_a_part_of_that_one() -> None:
    backend = MemoryBackend()

    @activity
    async def inner(ctx: ActivityContext) -> list[Any]:
        ctx.publish_event(type="inner")
        return [ctx.activity_id, ctx.session is backend.the_session, activity_context().activity_id]

    @activity
    def plain_inner(ctx: ActivityContext) -> list[Any]:
        return [ctx.activity_id, ctx.sync_session is backend.the_sync_session, ctx.session is backend.the_sync_session]

    @activity
    async def outer(ctx: ActivityContext) -> list[Any]:
        found = [await inner(), await plain_inner(), await count_words("a b")]
        return [*found, ctx.session is backend.the_session, activity_context() is ctx]

    raw = await outer.run_attempt(context(backend), b'{"args": [], "kwargs": {}}')
    assert json.loads(raw) == [["charge:1", True, "charge:1"], ["charge:1", True, True], 2, True, True]
    assert [publication.type for publication in backend.published] == ["inner"]
    with pytest.raises(ActivityContextError):
        activity_context()


async def test_an_attempt_can_be_entered_for_tests() -> None:
    with attempt(context(attempt=3)) as ctx:
        assert activity_context() is ctx
        assert await plain_with_ctx(1) == [1, 3, False]
        assert await save(Receipt(id="r", amount=Decimal(1))) == "i-1/2/charge:1 r"
    with pytest.raises(ActivityContextError):
        activity_context()


# -- for the worker --------------------------------------------------------------------------------------------
async def test_an_attempt_takes_and_gives_json() -> None:
    raw = await charge.run_attempt(context(), b'{"args": ["o-1"], "kwargs": {"amount": "2.50"}}')
    assert raw == b'{"id":"o-1","amount":"2.50"}'
    raw = await save.run_attempt(context(attempt=3), b'{"args": [{"id": "r", "amount": "1"}], "kwargs": {}}')
    assert raw == b'"i-1/2/charge:1 r"'


async def test_plain_functions_run_in_the_given_executor_with_their_context() -> None:
    backend = MemoryBackend()
    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set("t-1")

    @activity
    def looks(ctx: ActivityContext) -> list[Any]:
        return [threading.current_thread().name, tenant.get(), activity_context() is ctx, ctx.attempt]

    with ThreadPoolExecutor(1, thread_name_prefix="activities") as executor:
        raw = await looks.run_attempt(context(backend, attempt=4), b'{"args": [], "kwargs": {}}', executor=executor)
    assert json.loads(raw) == ["activities_0", "t-1", True, 4]
    assert backend.threads == ["activities_0"]


async def test_sessions_of_the_wrong_kind() -> None:
    @activity
    async def wants_sync(ctx: ActivityContext) -> None:
        _ = ctx.sync_session

    with pytest.raises(ActivityContextError, match="sync_session"):
        await wants_sync.run_attempt(context(), b'{"args": [], "kwargs": {}}')


async def test_the_context_passes_everything_on() -> None:
    backend = MemoryBackend()
    ctx = context(backend, attempt=2, workflow_name="checkout", queue="slow")
    assert (ctx.instance_id, ctx.run, ctx.workflow_name, ctx.activity_id) == ("i-1", 2, "checkout", "charge:1")
    assert (ctx.activity_name, ctx.attempt, ctx.idempotency_key) == ("charge", 2, "i-1/2/charge:1")
    assert ctx.info.queue == "slow"
    callback = functools.partial(lambda: None)
    ctx.on_commit(callback)
    assert backend.callbacks == [callback]
    ctx.publish_event(type="order.saved", data={"id": 1}, source="/shop", subject="s", topic="t")
    assert backend.published == [Publication("order.saved", b'{"id":1}', "/shop", "s", "t")]
    with pytest.raises(ValueError, match=r"romancy\."):
        ctx.publish_event(type="romancy.workflow.start")


async def test_errors_of_an_attempt() -> None:
    @activity
    async def fails(code: int) -> None:
        raise Declined(code)

    @activity
    def stops() -> None:
        raise StopIteration(5)

    @activity
    async def wrong_result() -> int:
        return "five"  # type: ignore[return-value]

    with pytest.raises(Declined):
        await fails.run_attempt(context(), b'{"args": [5], "kwargs": {}}')
    with pytest.raises(InvalidInputError, match="activity 'fails'"):
        await fails.run_attempt(context(), b'{"args": ["x"], "kwargs": {}}')
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(stops.run_attempt(context(), b'{"args": [], "kwargs": {}}'), 5)
    with pytest.raises(PayloadError, match="activity 'wrong_result', result") as caught:
        await wrong_result.run_attempt(context(), b'{"args": [], "kwargs": {}}')
    assert not RetryPolicy().is_retryable(caught.value)


async def test_a_plain_wrapper_around_an_async_function_is_awaited() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    @activity
    @logged
    async def wrapped(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    assert await wrapped.run_attempt(context(), b'{"args": [1], "kwargs": {}}') == b"2"
