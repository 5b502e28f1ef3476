"""The pytest plugin: the fixture `romancy_env`, a `WorkflowEnvironment` that is entered around a test. Loads no engine
before a test asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from romancy_stream.app import App
    from romancy_stream.registry import Registry
    from romancy_stream.testing.environment import WorkflowEnvironment

async_fixture: Any
try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # then it is a matter of the plugin that runs the tests' coroutines, such as anyio's
    async_fixture = pytest.fixture

MARKER = "romancy"
_SEED = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(code, **options): what the fixture romancy_env tests, and how; as WorkflowEnvironment takes them",
    )


@pytest.fixture
def romancy_app() -> App | Registry:
    """What `romancy_env` tests. Define a fixture of this name in your conftest.py, or mark the test."""
    raise pytest.UsageError(
        "romancy_env needs to know what it is to run: define a fixture romancy_app in conftest.py that returns your "
        f"App or Registry, or mark the test with @pytest.mark.{MARKER}(app)"
    )


@async_fixture  # type: ignore[untyped-decorator]  # of one of two libraries
async def romancy_env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    """A `WorkflowEnvironment` of its own for each test."""
    from romancy_stream.testing.environment import WorkflowEnvironment

    marks = list(request.node.iter_markers(MARKER))
    options: dict[str, Any] = {}
    for mark in reversed(marks):  # the closest one has the last word
        options |= mark.kwargs
    given = next((mark.args[0] for mark in marks if mark.args), None)
    async with WorkflowEnvironment(given or request.getfixturevalue("romancy_app"), **options) as env:
        if env.seed is not None:
            request.node.stash[_SEED] = env.how_to_repeat
        yield env


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.failed and _SEED in item.stash:
        report.sections.append(("romancy", item.stash[_SEED]))
    return report
