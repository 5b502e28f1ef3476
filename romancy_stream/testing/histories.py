"""Histories outside of an engine: as files that can be committed beside the tests, and replayed against the code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, overload

import orjson

from romancy_stream.app import App
from romancy_stream.engine import ordered
from romancy_stream.engine.definitions import WorkflowDef, definition_of
from romancy_stream.engine.history import WORKFLOW_STARTED, HistoryEvent
from romancy_stream.engine.instance import LiveInstance
from romancy_stream.engine.instance import replay as engine_replay
from romancy_stream.engine.loop import StepTooLong, stepping_aside
from romancy_stream.engine.sealing import PLAIN, Blobs, Sealing
from romancy_stream.errors import BrokenLogError, NonDeterminismError, UnknownWorkflowError
from romancy_stream.instances import HistoryEntry, microseconds
from romancy_stream.registry import Registry
from romancy_stream.retry import RetryPolicy
from romancy_stream.workflow import Workflow

FORMAT: Final = 1
_NO_BLOBS: Final[Blobs] = {}


@dataclass(frozen=True, slots=True)
class History(Sequence[HistoryEntry]):
    """Of one run, whole. As a sequence it has the entries that `app.history` gives; `events` are those of the log."""

    events: tuple[HistoryEvent, ...]

    @property
    def instance_id(self) -> str:
        return self.events[0].instance_id if self.events else ""

    @property
    def run(self) -> int:
        return self.events[0].run if self.events else 0

    @property
    def workflow_name(self) -> str:
        return str(self.events[0].attrs.get("workflow", "")) if self.events else ""

    @property
    def version(self) -> str | None:
        """Of the workflow's code."""
        version: str | None = self.events[0].attrs.get("version") if self.events else None
        return version

    @property
    def kinds(self) -> list[str]:
        """Kind and name of each event, as in "activity.scheduled charge:1"."""
        return [f"{event.kind} {event.ref}" if event.ref else event.kind for event in self.events]

    def __len__(self) -> int:
        return len(self.events)

    @overload
    def __getitem__(self, index: int) -> HistoryEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[HistoryEntry]: ...
    def __getitem__(self, index: int | slice) -> HistoryEntry | Sequence[HistoryEntry]:
        if isinstance(index, slice):
            return [HistoryEntry.of(event) for event in self.events[index]]
        return HistoryEntry.of(self.events[index])


# -- files ---------------------------------------------------------------------------------------------------------
def dump_history(history: History, path: str | Path | None = None) -> str:
    """JSON, and a file of it. Payloads stand as the texts that they are in the log, so that nothing of them is lost."""
    events = [
        {**_plain(event), "payload": None if event.payload is None else event.payload.decode()}
        for event in history.events
    ]
    document = {"format": FORMAT, "history": events}
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _plain(event: HistoryEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in _FIELDS}


_FIELDS: Final = tuple(each.name for each in fields(HistoryEvent))


def load_history(source: str | Path) -> History:
    """What `dump_history` wrote, or `romancy history --json`: a path, or the text itself. BrokenLogError."""
    text = source.read_bytes() if isinstance(source, Path) else source
    if isinstance(text, str) and not text.lstrip().startswith(("{", "[")):
        text = Path(text).read_bytes()
    try:
        document = orjson.loads(text)
        if isinstance(document, list):
            events = [_of_entry(entry) for entry in document]
        elif document.get("format", FORMAT) == FORMAT:
            events = [_of_dump(event) for event in document["history"]]
        else:
            raise BrokenLogError(f"a history of format {document['format']!r}, and this version reads {FORMAT}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenLogError(f"this is no history: {type(error).__name__}: {error}") from error
    if not events or events[0].kind != WORKFLOW_STARTED:
        raise BrokenLogError(f"a history begins with {WORKFLOW_STARTED}")
    return History(tuple(events))


def _of_dump(event: dict[str, Any]) -> HistoryEvent:
    payload = event["payload"]
    return HistoryEvent(**{**event, "payload": None if payload is None else payload.encode()})


def _of_entry(entry: dict[str, Any]) -> HistoryEvent:
    """As the command line shows it. It names no instance: `ctx.instance_id`, and what is made of it, differs."""
    payload = None if entry["payload"] is None else orjson.dumps(entry["payload"])
    at_us = microseconds(datetime.fromisoformat(entry["at"]))
    return HistoryEvent(
        entry.get("instance_id", "unknown"),
        entry.get("run", 1),
        entry["seq"],
        at_us,
        entry["kind"],
        entry["ref"],
        entry["attrs"],
        payload,
    )


# -- replay --------------------------------------------------------------------------------------------------------
def replay(
    history: History | Sequence[HistoryEvent] | str | Path,
    code: Any,
    *,
    sealing: Sealing | None = None,
    blobs: Blobs = _NO_BLOBS,
) -> None:
    """Runs the workflow's code on a history, without an effect, and compares what it asks for with what is recorded.
    `history`: also a file of one. `code`: the workflow, an app, or a registry. `sealing` None: as the app does it.
    NonDeterminismError where they differ; UnknownWorkflowError where `code` has no such workflow, or not that version
    of it; InvalidInputError and PayloadError where recorded data do not fit the code any more."""
    if isinstance(history, str | Path):
        history = load_history(history)
    events = history.events if isinstance(history, History) else tuple(history)
    definition = _definition(code, History(events))
    ordered.install()
    if sealing is None:
        sealing = code.node_config().sealer.sealing if isinstance(code, App) else PLAIN
    live = LiveInstance(definition, events[0].instance_id, events[0].run, RetryPolicy(), sealing)
    live.known = blobs
    with stepping_aside():
        try:
            engine_replay(live, events)
        except StepTooLong:
            message = "the workflow goes round without waiting for anything"
            raise NonDeterminismError(live.instance_id, "to wait", message) from None
        finally:
            live.evict()


def _definition(code: Any, history: History) -> WorkflowDef:
    name, version = history.workflow_name, history.version
    definition: WorkflowDef | None
    if isinstance(registry := getattr(code, "registry", code), Registry):
        definition = definition_of(registry.workflows, name, version)
    else:
        one: Workflow[..., Any] = Workflow.of(code)
        definition = one if one.name == name else None
    if definition is None:
        which = "" if version is None else f", version {version!r},"
        raise UnknownWorkflowError(f"the history is one of workflow {name!r}{which} which is not here")
    return definition
