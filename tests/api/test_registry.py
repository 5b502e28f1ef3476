"""Registries, and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from romancy_stream import ConfigurationError, Registry, WorkflowContext, activity, workflow
from romancy_stream.engine.parameters import MAX_NAME_CHARS


@workflow
async def ship(ctx: WorkflowContext, n: int) -> int:
    return n


@activity
async def pack(n: int) -> int:
    return n


def another(kind: Any, name: str) -> Any:
    async def function(ctx: WorkflowContext) -> None: ...

    return kind(name=name)(function)


def test_two_functions_of_one_name_are_refused_at_registration() -> None:
    registry = Registry()
    registry.add_workflow(ship)
    registry.add_activity(pack)
    with pytest.raises(ConfigurationError, match=r"two functions for workflow 'ship'.*test_registry\.py:\d+"):
        registry.add_workflow(another(workflow, "ship"))
    with pytest.raises(ConfigurationError, match=r"two functions for activity 'pack'"):
        registry.add_activity(another(activity, "pack"))
    assert registry.workflows == {"ship": ship}


def test_the_same_function_twice_is_nothing_new() -> None:
    registry = Registry()
    assert registry.add_workflow(ship) is ship
    registry.add_workflow(ship.with_options(instance_id="s-1"))
    registry.add_activity(pack)
    registry.add_activity(pack.with_options(queue="slow"))
    assert (registry.workflows["ship"], registry.activities["pack"]) == (ship, pack)


def test_a_workflow_and_an_activity_may_share_a_name() -> None:
    registry = Registry()
    registry.add_workflow(ship)
    registry.add_activity(another(activity, "ship"))
    assert set(registry.workflows) == set(registry.activities) == {"ship"}


def test_include() -> None:
    module = ModuleType("shop")
    vars(module).update(ship=ship, alias=ship, pack=pack, number=5)
    registry = Registry()
    registry.include(module)
    assert (dict(registry.workflows), dict(registry.activities)) == ({"ship": ship}, {"pack": pack})
    outer = Registry()
    outer.include(registry)
    assert (outer.workflows, outer.activities) == (registry.workflows, registry.activities)
    with pytest.raises(ConfigurationError, match="module or a Registry"):
        outer.include("shop")  # type: ignore[arg-type]


def test_resolve_finds_the_hint_that_is_wrong() -> None:
    @activity
    async def broken(order: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    registry = Registry()
    registry.add_workflow(ship)
    registry.resolve()
    registry.add_activity(broken)
    with pytest.raises(ConfigurationError, match=r"activity 'broken', parameter 'order'"):
        registry.resolve()


def test_views_cannot_be_written() -> None:
    views: Any = Registry().workflows
    with pytest.raises(TypeError):
        views["a"] = ship


HEAVY = ("sqlalchemy", "aiokafka", "faust", "pydantic", "asyncpg", "aiosqlite", "cloudevents", "typer", "msgspec")


def test_defining_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from romancy_stream import workflow, activity, WorkflowContext, ActivityContext\n"
        "@workflow\n"
        "async def w(ctx: WorkflowContext, n: int) -> int: return n\n"
        "@activity\n"
        "async def a(ctx: ActivityContext, n: int) -> int: return n\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("define", [activity, workflow])
def test_names_that_no_id_could_hold(define: Any) -> None:
    async def anything(ctx: WorkflowContext) -> None: ...

    assert define(name="n" * MAX_NAME_CHARS)(anything).name == "n" * MAX_NAME_CHARS
    assert define(name="dötted.näme/😀 x")(anything).name == "dötted.näme/😀 x"
    for name in ("", "n" * (MAX_NAME_CHARS + 1), "a\nb", "a\x00", "\ud800"):
        with pytest.raises(ValueError, match="name must"):
            define(name=name)(anything)
    with pytest.raises(TypeError, match="name must be a text"):
        define(name=5)(anything)


@pytest.mark.parametrize("queue", ["", "a b", "ü", "a/b", "q" * 101])
def test_queues_that_no_topic_could_be_named_after(queue: str) -> None:
    @activity
    async def anything() -> None: ...

    with pytest.raises(ValueError, match="queue must be"):
        activity(queue=queue)(anything.function)
    with pytest.raises(ValueError, match="queue must be"):
        anything.with_options(queue=queue)
