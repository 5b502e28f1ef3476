"""CPU time and memory of processes, out of /proc, and what is said about a row of numbers. Reads, changes nothing."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PROC: Final = Path("/proc")

Pids = Callable[[], Iterable[int]]
"""Those of a group, asked at each reading: a database makes and ends processes as it likes."""


def cpu_s(pid: int) -> float:
    """User and system time of a process and of its children that have ended; 0 when it is gone."""
    fields = _stat(pid)
    return 0.0 if fields is None else sum(map(int, fields[11:15])) / TICKS_PER_S


def rss_bytes(pid: int) -> int:
    return int((_PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES


def children(pid: int) -> list[int]:
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None and int(fields[1]) == pid:
            found.append(int(entry.name))
    return found


def title(pid: int) -> str:
    """What the process calls itself."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class CpuMeter:
    """CPU time by group of processes, between two readings."""

    def __init__(self, groups: Mapping[str, Pids]) -> None:
        self._groups = groups

    def read(self) -> dict[str, dict[int, float]]:
        return {name: {pid: cpu_s(pid) for pid in pids()} for name, pids in self._groups.items()}

    def since(self, before: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
        """Seconds. A process that ended in between counts for nothing, one that is new counts whole."""
        return {
            name: sum(spent - before[name].get(pid, 0.0) for pid, spent in now.items())
            for name, now in self.read().items()
        }


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def spreads(rows: Sequence[Mapping[str, float]], digits: int = 3) -> dict[str, dict[str, float]]:
    """Column by column."""
    return {name: spread([row[name] for row in rows], digits) for name in rows[0]}


def line(points: Mapping[int, float]) -> tuple[float, float]:
    """Least squares: where it begins, at x = 0, and how steep it is."""
    slope, begin = statistics.linear_regression(list(points), list(points.values()))
    return begin, slope


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
