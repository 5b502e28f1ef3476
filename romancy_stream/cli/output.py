"""What people and programs see: tables, JSON, notes and errors. On a terminal Rich draws; anywhere else lines are
plain, uncut and without colours. Values come from anywhere, so nothing in them may steer a terminal."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn

import typer

CELL_CHARS: Final = 200
"""A cell of a table; `--json` has everything."""
STYLES: Final[Mapping[str, str]] = {
    "completed": "green",
    "ok": "green",
    "failed": "red",
    "fail": "red",
    "missing": "red",
    "differs": "red",
    "unreadable": "red",
    "cancelled": "yellow",
    "warn": "yellow",
    "backing_off": "yellow",
    "unexpected": "yellow",
    "running": "cyan",
    "scheduled": "cyan",
    "waiting_for_timer": "cyan",
}

_debug = False


def set_debug(value: bool) -> None:
    global _debug
    _debug = value


def debug() -> bool:
    return _debug


# -- text ----------------------------------------------------------------------------------------------------------
def clean(text: str, limit: int | None = None) -> str:
    """One line without control characters: they are shown escaped."""
    shown = "".join(_escaped(each) if unicodedata.category(each)[0] == "C" else each for each in text)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode() if character.isascii() else f"\\u{ord(character):04x}"


def compact(value: Any) -> str:
    """JSON on one line, cut for a cell."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")), CELL_CHARS)


def moment(when: datetime | None) -> str:
    return "" if when is None else when.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def duration(span: timedelta) -> str:
    """Two units at most, milliseconds at least."""
    ms = span // timedelta(milliseconds=1)
    if abs(ms) < 1_000:
        return f"{ms} ms"
    if abs(ms) < 60_000:
        return f"{ms / 1_000:.3f} s"
    minutes, seconds = divmod(ms // 1_000, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


# -- to stdout -----------------------------------------------------------------------------------------------------
def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    cells = [[clean(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain([[name.upper() for name in columns], *cells])
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")  # an id that is cut cannot be copied
    for row in cells:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in facts)
    from rich.console import Console
    from rich.text import Text

    terminal = Console() if sys.stdout.isatty() else None
    for name, value in facts:
        if terminal is not None:
            terminal.print(Text(f"{name:{width}}  ", "bold") + Text(clean(value), STYLES.get(value, "")))
        else:
            print(f"{name:{width}}  {clean(value)}".rstrip())


def print_lines(text: str) -> None:
    """Text of several lines as it is, control characters escaped."""
    for line in text.splitlines():
        print(clean(line))


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


# -- to stderr -----------------------------------------------------------------------------------------------------
def note(text: str) -> None:
    print(clean(text), file=sys.stderr)


def notice(text: str) -> None:
    """As `note`, of several lines."""
    for line in text.splitlines():
        note(line)


def fail(message: str, code: int = 1) -> NoReturn:
    """One line, and the end."""
    note(f"error: {message}")
    raise typer.Exit(code)
