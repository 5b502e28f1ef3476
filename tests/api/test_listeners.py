"""Listeners: what they hear, in which process and context, and that nothing they do reaches the engine."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import (
    ActivityInfo,
    App,
    ConfigurationError,
    Happening,
    Listener,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.runtime import listeners as runtime
from tests.support import eventually

PATIENCE_S = 30
trace: ContextVar[str] = ContextVar("trace", default="")


class Everything(Listener):
    """Hears by methods of both kinds."""

    def __init__(self) -> None:
        self.heard: list[Happening] = []
        self.attempts: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    def _plain(self, happening: Happening) -> None:
        self.threads.add(threading.get_ident())
        self.heard.append(happening)

    async def _async(self, happening: Happening) -> None:
        await asyncio.sleep(0)
        self.heard.append(happening)

    on_workflow_started = on_workflow_failed = on_workflow_reset = _async
    on_activity_scheduled = on_activity_failed = on_workflow_cancelled = _async
    on_workflow_completed = on_workflow_recurred = on_activity_completed = _plain
    on_activity_attempt_failed = on_activity_retried = on_event_published = _plain

    def on_activity_started(self, activity: ActivityInfo) -> None:
        trace.set(f"{activity.activity_id}#{activity.attempt}")

    async def on_activity_finished(self, activity: ActivityInfo, outcome: str, error: BaseException | None) -> None:
        self.attempts.append((activity.activity_id, activity.attempt, outcome, type(error).__name__, trace.get()))

    def kinds(self, instance_id: str) -> list[str]:
        return [f"{each.kind} {each.ref or ''}".strip() for each in self.heard if each.instance_id == instance_id]


def make_app(folder: Path) -> tuple[App, list[str]]:
    app = App("heard", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'state.db'}", partitions=2)
    traces: list[str] = []

    @app.activity(retry=RetryPolicy.fixed(3, 0.01))
    async def shaky(what: str) -> str:
        traces.append(trace.get())
        if len(traces) == 1:
            raise LookupError("not yet")
        return what

    @app.activity
    def refuse() -> None:
        traces.append(trace.get())
        raise TerminalError("no")

    @app.workflow(name="good")
    async def good(ctx: WorkflowContext) -> str:
        ctx.publish_event(type="it.began", data={"x": 1}, subject="me")
        return await shaky("done")

    @app.workflow(name="bad")
    async def bad(ctx: WorkflowContext) -> None:
        await refuse()

    return app, traces


async def test_what_is_heard(tmp_path: Path) -> None:
    app, traces = make_app(tmp_path)
    listener = Everything()
    app.add_listener(listener)
    async with app:
        with pytest.raises(ConfigurationError, match="before the app is entered"):
            app.add_listener(listener)
        good = await app.start_by_name("good", instance_id="g")
        assert await good.result(timeout=PATIENCE_S) == "done"
        bad = await app.start_by_name("bad", instance_id="b")
        with pytest.raises(WorkflowFailedError):
            await bad.result(timeout=PATIENCE_S)
        await app.reset("g", to_event=1)
        assert await app.handle("g").result(timeout=PATIENCE_S) == "done"
        await app.fork("g", new_id="copy", at=1)
        assert await app.handle("copy").result(timeout=PATIENCE_S) == "done"
    first = [
        "workflow.started",
        "event.published event:1",
        "activity.scheduled shaky:1",
        "activity.attempt_failed shaky:1",
        "activity.retried shaky:1",
        "activity.completed shaky:1",
        "workflow.completed",
    ]
    again = [each for each in first if "attempt" not in each and "retried" not in each]
    assert listener.kinds("g") == first + again
    assert listener.kinds("copy") == again
    assert listener.kinds("b") == ["workflow.started", "activity.scheduled refuse:1", "activity.failed refuse:1",
                                   "workflow.failed"]  # fmt: skip
    _check_values({each.kind: each for each in listener.heard if each.instance_id in ("g", "b") and each.run == 1})
    assert threading.get_ident() not in listener.threads
    assert len(listener.threads) == 1
    assert traces[:3] == ["shaky:1#1", "shaky:1#2", "refuse:1#1"], "also in the thread of a plain function"
    assert listener.attempts[:3] == [
        ("shaky:1", 1, "failed", "LookupError", "shaky:1#1"),
        ("shaky:1", 2, "completed", "NoneType", "shaky:1#2"),
        ("refuse:1", 1, "failed", "TerminalError", "refuse:1#1"),
    ]


def _check_values(by_kind: dict[str, Happening]) -> None:
    started = by_kind["workflow.started"]
    assert (started.run, started.at.utcoffset() is not None) == (1, True)
    assert {each.workflow_name for each in by_kind.values()} == {"good", "bad"}
    assert by_kind["event.published"].details == {"type": "it.began", "subject": "me"}
    failed = by_kind["activity.attempt_failed"].details
    assert failed["error"] == {"type": "builtins:LookupError", "message": "not yet"}
    assert (failed["name"], failed["queue"], failed["attempt"]) == ("shaky", "default", 1)
    assert by_kind["activity.completed"].details["attempt"] == 2
    assert by_kind["activity.completed"].details["duration_s"] > 0
    assert by_kind["workflow.failed"].details["error"]["message"] == "no"


async def test_what_a_listener_does_wrong_stays_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Listener):
        async def on_workflow_started(self, happening: Happening) -> None:
            raise RuntimeError("of the listener")

        def on_activity_started(self, activity: ActivityInfo) -> None:
            raise RuntimeError("of the listener, in an attempt")

    app, _ = make_app(tmp_path)
    listener = Everything()
    for each in (Wrong(), listener):
        app.add_listener(each)
    with caplog.at_level(logging.ERROR):
        async with app:
            good = await app.start_by_name("good", instance_id="g")
            assert await good.result(timeout=PATIENCE_S) == "done"
    assert "workflow.completed" in listener.kinds("g")
    assert len(listener.attempts) == 2
    said = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert said.count("of the listener") == 1
    assert said.count("of the listener, in an attempt") == 2


async def test_a_slow_listener_misses_something_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "QUEUE_LIMIT", 2)
    gate = threading.Event()

    class Slow(Listener):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_workflow_completed(self, happening: Happening) -> None:
            gate.wait(PATIENCE_S)
            self.heard.append(happening.instance_id)

    app, traces = make_app(tmp_path)
    traces.append("")  # nothing fails
    slow = Slow()
    app.add_listener(slow)
    async with app:
        for number in range(6):
            handle = await app.start_by_name("good", instance_id=f"g-{number}")
            assert await handle.result(timeout=PATIENCE_S) == "done"
        gate.set()

        async def heard() -> bool:
            return len(slow.heard) == 3

        await eventually(heard, deadline_s=PATIENCE_S)
        assert app.stats().listeners_dropped == 3
    assert slow.heard == ["g-0", "g-1", "g-2"]
    assert [record for record in caplog.records if "too slow" in record.getMessage()]


async def test_an_app_that_cannot_be_entered_leaves_nothing_behind(tmp_path: Path) -> None:
    app, _ = make_app(tmp_path)
    app.add_listener(Everything())

    @app.workflow
    async def unresolvable(ctx: WorkflowContext, what: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match="NoSuchType"):
        await app.__aenter__()
    assert len(asyncio.all_tasks()) == 1


async def test_only_listeners_are_added(tmp_path: Path) -> None:
    app, _ = make_app(tmp_path)
    with pytest.raises(TypeError, match="is a Listener"):
        app.add_listener(print)  # type: ignore[arg-type]
