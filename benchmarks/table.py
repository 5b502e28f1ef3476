"""The lines of JSON that benchmarks print, as tables for people. Reads files or its input, writes to its output.

python -m benchmarks.throughput | python -m benchmarks.table
python -m benchmarks.table FILE...
"""

from __future__ import annotations

import fileinput
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

SPREAD: Final = {"median", "min", "max"}
HEADING: Final = ("benchmark", "rival", "version", "workload", "workflows", "steps", "broker", "database")
ASKED: Final = {*HEADING, "runs", "machine"}
"""What was measured and how; everything else are facts."""
PLAIN: Final = ("unavailable", "failed")
"""In place of facts: why there are none."""
OTHERS: Final = ("floor", "rival", "one_engine", "one_partition")
"""What the names of the other side's facts begin with."""
RATIOS: Final = {"workflows_per_s": "ratio", "cpu_ms_per_workflow total": "cpu_ratio", "p50_ms": "p50_ratio"}
"""Where a ratio is not called after its fact."""
COLUMNS: Final = ("", "romancy", "other", "ratio")

Row = tuple[str, str, str, str]
"""As COLUMNS says; the other side's and the ratio are empty where nothing stands beside."""


def flat(facts: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Numbers and spreads, by the names on the way to them. Series are left to those who draw them."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        label = f"{above} {name}".strip()
        if isinstance(value, Mapping) and value.keys() != SPREAD:
            found |= flat(value, label)
        elif isinstance(value, int | float | Mapping):
            found[label] = value
    return found


def rows(line: Mapping[str, Any]) -> list[Row]:
    facts = flat({name: value for name, value in line.items() if name not in ASKED})
    others = {name: f"{other}_{name}" for name in facts for other in OTHERS if f"{other}_{name}" in facts}
    ratios = {name: f"{name}_ratio" if f"{name}_ratio" in facts else RATIOS.get(name, "") for name in others}
    beside = {*others.values(), *ratios.values()}
    return [_row(name, facts, others.get(name), ratios.get(name)) for name in facts if name not in beside]


def _row(name: str, facts: Mapping[str, Any], other: str | None, ratio: str | None) -> Row:
    if other is None and name.startswith(tuple(f"{each}_" for each in OTHERS)):
        return name, "", text(facts[name]), ""  # of which we have none
    return name, text(facts[name]), text(facts.get(other or "")), text(facts.get(ratio or ""))


def text(value: Any) -> str:
    """A number, or a median with the least and the most."""
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        return number(value)
    return f"{number(value['median'])} ({number(value['min'])} to {number(value['max'])})"


def number(value: float) -> str:
    """Three digits that count, and no more of what is longer."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of text: a heading for each measurement, its rows in columns below."""
    blocks = [(heading(line), rows(line) if not _missing(line) else []) for line in lines]
    shown = [COLUMNS, *(row for _, some in blocks for row in some)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(COLUMNS))]
    yield _aligned(COLUMNS, widths)
    for title, some in blocks:
        yield title
        for row in some:
            yield _aligned(row, widths)


def heading(line: Mapping[str, Any]) -> str:
    about = " ".join(str(line[name]) for name in HEADING if name in line)
    return about + (f": {_missing(line)}" if _missing(line) else "")


def _missing(line: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {line[name]}" for name in PLAIN if name in line)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.strip():
            yield json.loads(line)


def main() -> None:
    with fileinput.input(encoding="utf-8") as lines:
        for line in table(parsed(lines)):
            print(line)


if __name__ == "__main__":
    main()
