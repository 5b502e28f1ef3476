"""Declaring schedules."""

from __future__ import annotations

import pytest

from romancy_stream import App, ConfigurationError, WorkflowContext


def test_mistakes_are_seen_when_they_are_made() -> None:
    app = App("shop")

    @app.workflow
    async def job(ctx: WorkflowContext, count: int) -> None: ...

    with pytest.raises(ValueError, match="five fields"):
        app.schedule("a", job, 1, cron="often")
    with pytest.raises(ValueError, match="whole seconds"):
        app.schedule("a", job, 1, every=0.5)
    app.schedule("a", job, 1, every=60)
    with pytest.raises(ConfigurationError, match="two schedules"):
        app.schedule("a", job, 1, every=60)
    with pytest.raises(ConfigurationError, match="the engine's own"):

        @app.workflow(name="romancy.mine")
        async def mine(ctx: WorkflowContext) -> None: ...
