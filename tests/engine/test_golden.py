"""Golden histories: logs that earlier versions wrote, never edited. Every version must replay them, and fold them to
the rows they folded to. A new kind of step gets a new file: `python -m tests.engine.test_golden NAME` writes it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from romancy_stream.engine import projection
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.instance import LiveInstance, replay
from romancy_stream.engine.loop import stepping_aside
from romancy_stream.retry import RetryPolicy
from tests.engine import test_core, test_disorder, test_undoing
from tests.engine.world import World

GOLDEN = Path(__file__).parents[1] / "golden"
WORKFLOWS = {
    each.name: each for each in (test_core.steps, test_core.everything, test_disorder.branching, test_undoing.picks)
}


def _files() -> list[Path]:
    return sorted(GOLDEN.glob("*.json"))


ADDED = {"parent_id": None, "waiting_for": None, "version": None}
"""Columns that older rows do not have, and what they hold for them."""


def _load(path: Path) -> tuple[list[HistoryEvent], dict[str, Any]]:
    document = json.loads(path.read_text("utf-8"))
    events = [
        HistoryEvent(**{**event, "payload": None if event["payload"] is None else event["payload"].encode()})
        for event in document["history"]
    ]
    return events, document["row"]


def _row(events: list[HistoryEvent]) -> dict[str, Any]:
    row = dataclasses.asdict(projection.fold(events, 0).row())
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()}


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.stem)
def test_an_old_history_replays_and_folds_as_it_did(path: Path) -> None:
    events, row = _load(path)
    workflow = WORKFLOWS[events[0].attrs["workflow"]]
    live = LiveInstance(workflow, events[0].instance_id, events[0].run, RetryPolicy())
    with stepping_aside():
        assert replay(live, events) == []
        live.evict()
    assert _row(events) == {**ADDED, **row}


def test_there_are_golden_histories() -> None:
    assert len(_files()) >= 3


def _nothing(_: dict[str, str], args: list[Any]) -> None:
    """Answers all there is to undo."""


def _write(name: str) -> None:
    answers = {"double": test_core.doubled, "work": test_disorder.answer, "pick": test_core.doubled, "unpick": _nothing}
    world = World(*WORKFLOWS.values(), answers=answers)
    world.start(name, 3, f"golden-{name}")
    world.run()
    events = world.history[f"golden-{name}"]
    history = [
        {**dataclasses.asdict(event), "payload": None if event.payload is None else event.payload.decode()}
        for event in events
    ]
    path = GOLDEN / f"{name}.json"
    if path.exists():
        raise SystemExit(f"{path} exists: golden histories are never edited")
    text = json.dumps({"history": history, "row": _row(events)}, indent=1)
    path.write_text(text.replace(f"{GOLDEN.parents[1]}/", "") + "\n", "utf-8")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        _write(each)
