"""Defining signals, queries, updates, workflow classes and versions; and what callers can do with them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from romancy_stream import (
    App,
    ConfigurationError,
    NonDeterminismError,
    ReadOnlyError,
    Registry,
    Signal,
    UpdateFailedError,
    Workflow,
    WorkflowContext,
    query,
    signal,
    update,
    workflow,
)
from romancy_stream.workflow import VERSION_CHARS
from tests.support import eventually


@workflow
async def order(ctx: WorkflowContext, first: str = "-") -> list[str]:
    ctx.state.said = [first]
    await ctx.wait_condition(lambda: len(ctx.state.said) > 2)
    return list(ctx.state.said)


@order.signal
def say(ctx: WorkflowContext, text: str) -> None:
    ctx.state.said.append(text)


@order.signal(name="say twice")
def say_twice(ctx: WorkflowContext, first: str, second: str = "?") -> None:
    ctx.state.said += [first, second]


@order.query
def last(ctx: WorkflowContext) -> str:
    return str(ctx.state.said[-1])


@order.query
def meddle(ctx: WorkflowContext) -> None:
    ctx.state.said = []


@order.update
async def never(ctx: WorkflowContext) -> None:
    await ctx.wait_condition(lambda: False)


@order.update
def huge(ctx: WorkflowContext) -> str:
    return "x" * 2_000_000


# -- definitions -------------------------------------------------------------------------------------------------
def test_a_handler_is_what_the_decorator_makes() -> None:
    assert isinstance(say, Signal)
    assert (say.name, say.kind, say.__name__) == ("say", "signal", "say")
    assert set(order.handlers) == {"say", "say twice", "last", "meddle", "never", "huge"}
    assert order.with_options(instance_id="x").handlers is order.handlers


def test_what_cannot_be_a_handler() -> None:
    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    async def waits(ctx: WorkflowContext) -> int:
        return 1

    def streams(ctx: WorkflowContext) -> Any:
        yield 1

    def variadic(ctx: WorkflowContext, *args: int) -> None: ...

    with pytest.raises(TypeError, match="a query must be a plain `def`"):
        plain.query(waits)
    with pytest.raises(TypeError, match="`def` or `async def` function"):
        plain.signal(streams)
    with pytest.raises(TypeError, match=r"\*args"):
        plain.update(variadic)
    change = plain.update(waits)
    with pytest.raises(TypeError, match="a validator must be a plain `def`"):
        change.validator(waits)
    with pytest.raises(TypeError, match=r"validator of update 'waits' takes \(n\), the update \(\)"):
        change.validator(lambda ctx, n: None)
    with pytest.raises(ConfigurationError, match="two handlers called 'waits'"):
        plain.signal(name="waits")(lambda ctx: None)


def test_types_that_have_no_json_are_found_when_the_app_begins() -> None:
    class Opaque: ...

    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    @plain.signal
    def take(ctx: WorkflowContext, value: Opaque) -> None: ...

    registry = Registry()
    registry.add_workflow(plain)
    with pytest.raises(ConfigurationError, match="signal 'take', parameter 'value'"):
        registry.resolve()


# -- classes -----------------------------------------------------------------------------------------------------
class Base:
    @signal
    def hello(self) -> None: ...


@workflow(name="counter")
class Counter(Base):
    def __init__(self, ctx: WorkflowContext, start: int = 5) -> None:
        self.n = start

    async def run(self, ctx: WorkflowContext, to: int) -> int:
        return self.n + to

    @update(name="grow")
    def add(self, n: int) -> int:
        self.n += n
        return self.size()  # type: ignore[no-any-return]

    @query
    def size(self) -> int:
        return self.n


async def test_a_class_stays_a_class() -> None:
    assert isinstance(Counter, type)
    made = Counter(None, 1)  # type: ignore[arg-type]
    assert made.add(2) == 3
    definition = Workflow.of(Counter)
    assert (definition.name, definition.__name__, definition.code) == ("counter", "Counter", Counter)
    assert set(definition.handlers) == {"hello", "grow", "size"}
    assert await definition(None, 2) == 7  # type: ignore[arg-type]
    assert not hasattr(definition, "n")


def test_classes_that_are_none() -> None:
    class NoRun: ...

    class PlainRun:
        def run(self, ctx: WorkflowContext) -> None: ...

    class NoCtx:
        async def run(self, value: int) -> None: ...

    class Greedy:
        def __init__(self, ctx: WorkflowContext, order: str) -> None: ...

        async def run(self, ctx: WorkflowContext) -> None: ...

    class Named:
        def __init__(self, *, ctx: WorkflowContext) -> None: ...

        async def run(self, ctx: WorkflowContext) -> None: ...

    for cls in (NoRun, PlainRun):
        with pytest.raises(TypeError, match="async def run"):
            workflow(cls)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="after self must be `ctx: WorkflowContext`"):
        workflow(NoCtx)
    for greedy in (Greedy, Named):
        with pytest.raises(TypeError, match="__init__ takes `ctx: WorkflowContext`, or nothing"):
            workflow(greedy)
    with pytest.raises(TypeError, match="it needs @workflow"):
        Workflow.of(Base)  # type: ignore[arg-type]

    class Child(Counter): ...

    with pytest.raises(TypeError, match="it needs @workflow"):
        Workflow.of(Child)


def test_a_module_with_a_class_can_be_included() -> None:
    module = ModuleType("carts")
    vars(module).update(Counter=Counter, order=order, Base=Base)
    registry = Registry()
    registry.include(module)
    registry.include(module)
    assert set(registry.workflows) == {"counter", "order"}
    other = Registry()
    other.include(registry)
    assert other.workflows["counter"] is Workflow.of(Counter)


# -- versions ----------------------------------------------------------------------------------------------------
def version(number: str | None, **options: Any) -> Workflow[..., Any]:
    @workflow(name="w", version=number, **options)
    async def code(ctx: WorkflowContext) -> None: ...

    return code


def test_the_newest_version_is_the_one_that_was_defined_last_or_says_so() -> None:
    registry = Registry()
    one, two, three = version("1"), version("2"), version("3")
    for each in (one, two, three, one):
        registry.add_workflow(each)
    assert registry.workflows["w"] is three
    assert registry.workflows.at("w", "1") is one
    assert registry.workflows.at("w", None) is None
    assert registry.workflows.all() == [one, two, three]
    assert len(registry.workflows) == 1
    fixed = version("4", default=True)
    registry.add_workflow(fixed)
    registry.add_workflow(version("5"))
    assert registry.workflows["w"] is fixed
    with pytest.raises(ConfigurationError, match="versions '4' and '6' are both the default"):
        registry.add_workflow(version("6", default=True))
    with pytest.raises(ConfigurationError, match=r"two functions for workflow 'w'.*or a version="):
        registry.add_workflow(version("1"))


@pytest.mark.parametrize(("bad", "error"), [("", ValueError), ("a\n", ValueError), (2, TypeError)])
def test_what_cannot_be_a_version(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        version(bad)
    with pytest.raises(ValueError, match=f"{VERSION_CHARS}"):
        version("x" * (VERSION_CHARS + 1))


@pytest.mark.parametrize("patch", ["", "a\0", 5, "x" * 201])
def test_what_cannot_be_a_patch(patch: Any) -> None:
    ctx = WorkflowContext(None)  # type: ignore[arg-type]
    for ask in (ctx.patched, ctx.deprecate_patch):
        with pytest.raises(ValueError, match="a patch has a name"):
            ask(patch)


# -- callers -----------------------------------------------------------------------------------------------------
@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    app = App(f"t{uuid.uuid4().hex[:8]}", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path}/db")
    app.registry.add_workflow(order)
    async with app:
        yield app


async def test_arguments_are_checked_before_anything_is_sent(app: App) -> None:
    handle = await app.start(order, instance_id="o-1")
    with pytest.raises(TypeError, match="missing a required argument"):
        await handle.signal(say)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="too many positional"):
        await handle.signal("say", "a", "b")
    with pytest.raises(TypeError, match="only known by its name"):
        await app.signal("o-1", "say", "a", "b")
    with pytest.raises(TypeError, match="is no signal"):
        await handle.signal(last)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="is no update"):
        await handle.update(5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="instance_id"):
        await app.signal("", "say", "a")
    await handle.signal("say twice", second="b", first="a")
    assert await handle.result(timeout=30) == ["-", "a", "b"]
    assert not await app.dead_letters()


async def test_by_name_one_argument_is_the_data_and_names_are_an_object(app: App) -> None:
    await app.start(order, instance_id="o-1")
    await app.signal("o-1", "say twice", first="a")
    assert await app.handle("o-1").result(timeout=30) == ["-", "a", "?"]
    await app.start(order, instance_id="o-2")
    await app.signal("o-2", "say", "a")
    await app.signal("o-2", "say", "b")
    assert await app.handle("o-2").result(timeout=30) == ["-", "a", "b"]
    assert await app.query("o-2", "last") == "b"


async def test_an_update_that_takes_too_long_may_still_happen(app: App) -> None:
    handle = await app.start(order, instance_id="o-1")
    with pytest.raises(TimeoutError):
        await handle.update(never, timeout=0.05)

    async def accepted() -> bool:
        return "update.accepted" in [entry.kind for entry in await app.history("o-1")]

    await eventually(accepted, deadline_s=30)


async def test_a_result_that_cannot_be_sent_fails_the_update_and_not_the_workflow(app: App) -> None:
    handle = await app.start(order, instance_id="o-1")
    with pytest.raises(UpdateFailedError, match="PayloadTooLargeError"):
        await handle.update(huge, timeout=30)
    await handle.signal("say twice", "a")
    assert len(await handle.result(timeout=30)) == 3


async def test_a_client_that_may_not_read_events_finds_answers_in_the_history(app: App) -> None:
    async with app.client(poll_interval=0.05) as client:
        await app.start(order, instance_id="o-1")
        handle = client.handle("o-1", order)
        with pytest.raises(UpdateFailedError):
            await handle.update(huge, timeout=30)
        waiting = asyncio.create_task(handle.update(never, timeout=30))

        async def accepted() -> bool:
            return [entry.kind for entry in await client.history("o-1")].count("update.accepted") == 2

        await eventually(accepted, deadline_s=30)
        await handle.signal(say_twice, "a")
        with pytest.raises(Exception, match="has ended"):
            await waiting


async def test_queries_need_the_code_and_that_of_the_instance(app: App, tmp_path: Path) -> None:
    handle = await app.start(order, "x", instance_id="o-1")

    async def there() -> bool:
        return await app.get_instance("o-1") is not None

    await eventually(there, deadline_s=30)
    assert await handle.query(last) == "x"
    with pytest.raises(ReadOnlyError, match=r"ctx\.state\.said was set"):
        await handle.query(meddle)
    registry, app.registry = app.registry, Registry()
    with pytest.raises(ConfigurationError, match="the code of workflow 'order' is not here"):
        await app.query("o-1", "last")
    assert await handle.query("last") == "x"

    @workflow(name="order")
    async def other(ctx: WorkflowContext, first: str) -> None:
        ctx.publish_event(type="x")

    app.registry.add_workflow(other)
    other.query(name="last")(lambda ctx: "?")
    with pytest.raises(NonDeterminismError):
        await app.query("o-1", "last")
    app.registry = registry
