"""A history as a table that people read: one line an event, with what it was about. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from romancy_stream.cli.output import CELL_CHARS, clean, compact, duration, moment
from romancy_stream.engine import history as h
from romancy_stream.instances import HistoryEntry
from romancy_stream.instances import moment as moment_of

COLUMNS: Final = ("seq", "time", "+delta", "event", "what", "attempt", "details")


def rows(entries: Sequence[HistoryEntry]) -> list[list[str]]:
    shown = []
    before = entries[0].at if entries else None
    for entry in entries:
        assert before is not None
        shown.append(
            [
                str(entry.seq),
                moment(entry.at),
                f"+{duration(entry.at - before)}",
                entry.kind,
                _what(entry),
                _attempt(entry.attrs),
                clean(_DETAILS.get(entry.kind, _attrs)(entry), CELL_CHARS),
            ]
        )
        before = entry.at
    return shown


def error_line(error: Any) -> str:
    """Type and message of an error as the log holds it."""
    if not isinstance(error, dict) or "type" not in error:
        return compact(error)
    name = str(error.get("type", "")).rpartition(":")[2]
    return clean(f"{name}: {error.get('message', '')}", CELL_CHARS)


def _what(entry: HistoryEntry) -> str:
    if entry.kind == h.WORKFLOW_STARTED:
        return str(entry.attrs.get("workflow", ""))
    if entry.kind == h.EVENT_PUBLISHED:
        return str(entry.attrs.get("type", ""))
    return entry.ref or ""


def _attempt(attrs: Mapping[str, Any]) -> str:
    """Which attempt, and how long it took."""
    told = [f"#{attrs['attempt']}"] if "attempt" in attrs else []
    if "duration_us" in attrs:
        told.append(duration(timedelta(microseconds=attrs["duration_us"])))
    return " ".join(told)


def _payload(entry: HistoryEntry) -> str:
    return "" if entry.payload is None else compact(entry.payload)


def _error(entry: HistoryEntry) -> str:
    reason = f"{entry.attrs['reason']}: " if "reason" in entry.attrs else ""
    again = f"; again at {moment(moment_of(entry.attrs['next_at_us']))}" if "next_at_us" in entry.attrs else ""
    return f"{reason}{error_line(entry.payload)}{again}"


def _due(entry: HistoryEntry) -> str:
    due = moment_of(entry.attrs["due_us"])
    return f"due {moment(due)} (in {duration(due - entry.at)})" if due >= entry.at else f"due {moment(due)} (past)"


def _message(entry: HistoryEntry) -> str:
    return str(entry.attrs.get("message", ""))


def _attrs(entry: HistoryEntry) -> str:
    return compact(entry.attrs) if entry.attrs else ""


_DETAILS: Final[Mapping[str, Callable[[HistoryEntry], str]]] = {
    h.WORKFLOW_STARTED: _payload,
    h.WORKFLOW_COMPLETED: _payload,
    h.WORKFLOW_FAILED: _error,
    h.WORKFLOW_CANCELLED: _payload,
    h.WORKFLOW_RECURRED: _payload,
    h.WORKFLOW_PARKED: _message,
    h.ACTIVITY_SCHEDULED: _payload,
    h.ACTIVITY_ATTEMPT_FAILED: _error,
    h.ACTIVITY_RETRIED: lambda entry: "",
    h.ACTIVITY_PASSED_ON: lambda entry: "",
    h.ACTIVITY_COMPLETED: _payload,
    h.ACTIVITY_FAILED: _error,
    h.COMPENSATION_SCHEDULED: _payload,
    h.COMPENSATION_COMPLETED: _payload,
    h.COMPENSATION_FAILED: _error,
    h.TIMER_STARTED: _due,
    h.EVENT_PUBLISHED: _payload,
    h.CHILD_STARTED: lambda entry: f"{entry.attrs['workflow']} {entry.attrs['id']} {_payload(entry)}",
    h.CHILD_COMPLETED: _payload,
    h.CHILD_FAILED: _error,
    h.CHILD_CANCELLED: _payload,
}
