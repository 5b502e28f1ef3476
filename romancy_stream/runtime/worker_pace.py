"""How long a worker's attempts take, by activity, and so how soon one that is put into its hands would begin. An engine
in the same process keeps tasks from the broker for as long as that is soon. Values in memory; no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from math import inf
from typing import Final

FORGETTING: Final = 8
"""An attempt that took longer than was expected is what is expected of the next one; one that was faster changes that
by an eighth of the difference."""


class Pace:
    """`slots`: attempts at a time; `names`: of the activities there are. `expected_s`: activity -> seconds; one that
    has not run here yet is not in it."""

    def __init__(self, slots: int, names: Container[str]) -> None:
        self.expected_s: dict[str, float] = {}
        self._names = names
        self._slots = slots
        self._running: Counter[str] = Counter()

    def began(self, name: str) -> None:
        self._running[name] += 1

    def ended(self, name: str, took_s: float) -> None:
        leave(self._running, name)
        if name not in self._names:
            return
        expected_s = self.expected_s.get(name, 0.0)
        slower = took_s > expected_s
        self.expected_s[name] = took_s if slower else expected_s + (took_s - expected_s) / FORGETTING

    def spare_s(self, within_s: float, waiting: Iterable[Mapping[str, int]]) -> float:
        """Seconds of work that could begin within `within_s`, behind those `waiting` (activity -> how many). What runs
        longer than that, or nobody knows for how long, holds its slot."""
        expected_s = self.expected_s
        held = sum(count for name, count in self._running.items() if expected_s.get(name, inf) > within_s)
        before_s = sum(count * expected_s.get(name, inf) for names in waiting for name, count in names.items())
        return within_s * (self._slots - held) - before_s


def leave(names: Counter[str], name: str) -> None:
    """One less; none is kept of which there is none."""
    names[name] -= 1
    if not names[name]:
        del names[name]
