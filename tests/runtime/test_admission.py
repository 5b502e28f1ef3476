"""Who begins while much is under way: results come first, and nobody waits for long."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from romancy_stream import App, WorkflowContext
from romancy_stream.broker.embedded.reader import Reader
from romancy_stream.broker.port import TP, BatchSource
from romancy_stream.engine.commit import ActivityRow, Commit
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import Received
from romancy_stream.runtime import admission, processor
from romancy_stream.runtime.admission import Admission
from romancy_stream.wire.malformed import Malformed
from romancy_stream.wire.record import Record
from tests.support import eventually

COMMANDS = {TP("shop.commands", 0), TP("shop.commands", 1)}
RESULTS = {TP("shop.results", 0), TP("shop.results", 1)}


class Source:
    """A BatchSource's hold and release."""

    def __init__(self) -> None:
        self.held: set[TP] = set()
        self.holds = 0

    def hold(self, *tps: TP) -> None:
        self.held |= set(tps)
        self.holds += 1

    def release(self, *tps: TP) -> None:
        self.held -= set(tps)


class Setting:
    def __init__(self, *, busy: bool = True) -> None:
        self.source = Source()
        self.busy = busy
        self.admission = Admission("shop.commands", lambda: cast(BatchSource, self.source), lambda: self.busy)
        self.admission.adopt(COMMANDS | RESULTS)

    def note(self, *, begin: int = 0, other: int = 0, asked: int = 0, failed: int = 0, ended: int = 0) -> None:
        """A commit of so many commands, and inputs of `results`. Attempts are asked for, fail and are waited with, or
        have ended."""
        inputs = [_received("shop.commands")] * begin + [_received("shop.results")] * other
        rows = [_row("scheduled")] * asked + [_row("backing_off")] * failed + [_row("completed", 1)] * ended
        self.admission.note(inputs, Commit(activities=rows))


def _received(topic: str) -> Received:
    return Received(Record(topic, 0, 0, None, None, [], 0), Malformed("not_an_event", "whatever it is"))


def _row(status: str, finished_us: int | None = None) -> ActivityRow:
    return ActivityRow("i", 1, "step:1", "step", "default", status, 1, 0, 0, finished_us, None, None)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "UNDER_WAY_LIMIT", 100)
    monkeypatch.setattr(admission, "BACKLOG", 20)


@pytest.fixture
def for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time alone lets nobody in."""
    monkeypatch.setattr(admission, "HELD_LIMIT_S", 3_600.0)
    monkeypatch.setattr(admission, "AWAITED_S", 3_600.0)


async def test_commands_wait_until_results_have_come(for_long: None) -> None:
    setting = Setting()
    setting.note(begin=60, asked=60)
    assert not setting.source.held
    setting.note(begin=60, asked=60)
    assert setting.source.held == COMMANDS
    setting.note(asked=60, ended=60)  # their next steps
    assert setting.source.held == COMMANDS
    setting.note(ended=21)
    assert not setting.source.held


async def test_what_begins_one_by_one_never_waits(for_long: None) -> None:
    """However many long attempts are under way: there is no backlog."""
    setting = Setting()
    for _ in range(50):
        setting.note(begin=19, asked=19)
    assert not setting.source.holds


async def test_workflows_that_ask_for_nothing_never_wait(for_long: None) -> None:
    setting = Setting()
    setting.note(begin=10_000)
    assert not setting.source.holds


async def test_an_engine_that_is_idle_lets_commands_in(for_long: None) -> None:
    """Its workers are slow."""
    setting = Setting(busy=False)
    setting.note(begin=120, asked=120)
    assert setting.source.held == COMMANDS
    await eventually(lambda: not setting.source.held)


async def test_an_engine_that_is_always_busy_lets_commands_in_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HELD_LIMIT_S", 0.1)
    setting = Setting()
    setting.note(begin=120, asked=120)
    assert setting.source.held == COMMANDS
    await eventually(lambda: not setting.source.held)
    setting.note(other=120, asked=120, ended=120)  # children, or runs that follow others
    assert not setting.source.held, "before a batch of commands had its turn"
    setting.note(begin=120, asked=120)
    assert setting.source.held == COMMANDS
    setting.admission.adopt(())


async def test_results_that_take_long_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HELD_LIMIT_S", 3_600.0)
    monkeypatch.setattr(admission, "AWAITED_S", 0.1)
    setting = Setting()
    setting.note(begin=120, asked=120)
    assert setting.source.held == COMMANDS
    await eventually(lambda: not setting.source.held)
    setting.note(begin=60, asked=60)
    assert setting.source.holds == 1


async def test_more_results_than_were_awaited_do_not_count_for_later(for_long: None) -> None:
    """They are those of an owner before."""
    setting = Setting()
    setting.note(ended=1_000)
    setting.note(begin=120, asked=120)
    assert setting.source.held == COMMANDS
    setting.admission.adopt(())


async def test_an_attempt_that_waits_for_its_retry_is_not_under_way(for_long: None) -> None:
    setting = Setting()
    for _ in range(50):
        setting.note(begin=20, asked=20)
        setting.note(failed=20)
        setting.note(asked=20)
        setting.note(ended=20)
    assert not setting.source.holds


async def test_what_is_never_heard_of_again_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "AWAITED_S", -1.0)
    setting = Setting()
    for _ in range(100):
        setting.note(begin=1, asked=1)
    assert not setting.admission._awaited
    assert not setting.admission._sum


async def test_another_assignment_begins_anew(for_long: None) -> None:
    setting = Setting()
    setting.note(begin=120, asked=120)
    setting.admission.adopt({TP("shop.commands", 7), TP("shop.results", 7)})
    assert not setting.source.held
    setting.note(begin=60, asked=60)
    assert not setting.source.held
    setting.note(begin=60, asked=60)
    assert setting.source.held == {TP("shop.commands", 7)}
    setting.admission.adopt(())
    assert not setting.source.held


async def test_a_backlog_does_not_begin_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three steps each, and batches of 50, half of the 1,000 would be open at once."""
    monkeypatch.setattr(Reader.poll, "__defaults__", (50,))
    monkeypatch.setattr(processor, "INPUTS_PER_COMMIT", 50)
    most = 0
    handle = EngineCore.handle

    def handled(core: EngineCore, *arguments: Any) -> Commit:
        nonlocal most
        commit = handle(core, *arguments)
        most = max(most, len(core._cache))
        return commit

    monkeypatch.setattr(EngineCore, "handle", handled)
    app = App("shop", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'state.db'}")

    @app.activity
    async def step(number: int) -> int:
        return number + 1

    @app.workflow
    async def steps(ctx: WorkflowContext, number: int) -> int:
        return await step(await step(await step(number)))

    async with app:
        handles = await app.start_many(steps, range(1_000))
        results = await asyncio.gather(*[handle.result() for handle in handles])
    assert results == [number + 3 for number in range(1_000)]
    assert 100 <= most <= 250
