"""One thing done many times under a meter, run by run: how many per second, and the CPU time of each process for one of
them. Reads /proc by way of the meter, gives orders to a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import measure, stage


@dataclass(slots=True)
class Bursts:
    """What one side did. `order`: what its client is told, before the number; `what`: what is counted, one and many."""

    order: str = "burst"
    what: tuple[str, str] = ("workflow", "workflows")
    per_s: list[float] = field(default_factory=list)
    cpu_ms: list[dict[str, float]] = field(default_factory=list)  # for one, by process

    @property
    def total_cpu_ms(self) -> list[float]:
        return [sum(each.values()) for each in self.cpu_ms]

    def run(self, side: stage.Side, count: int, *numbers: int) -> None:
        """`numbers`: what the order takes besides."""
        before = side.meter.read()
        wall_s = side.client.ask(" ".join(map(str, (self.order, count, *numbers))))["wall_s"]
        spent = side.meter.since(before)
        self.per_s.append(count / wall_s)
        self.cpu_ms.append({name: 1000 * cpu_s / count for name, cpu_s in spent.items()})

    def facts(self) -> dict[str, Any]:
        one, many = self.what
        return {
            f"{many}_per_s": measure.spread(self.per_s, 1),
            f"cpu_ms_per_{one}": measure.spreads(self.cpu_ms) | {"total": measure.spread(self.total_cpu_ms)},
        }


def beside(ours: Bursts, other: Bursts, name: str) -> dict[str, Any]:
    """Facts of both, the other's under its name, and ours divided by the other's, pair by pair."""
    return {
        **{f"{name}_{fact}": value for fact, value in other.facts().items()},
        **ours.facts(),
        "ratio": measure.spread(quotients(ours.per_s, other.per_s)),
        "cpu_ratio": measure.spread(quotients(ours.total_cpu_ms, other.total_cpu_ms), 2),
    }


def quotients(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, others, strict=True)]


def lines(points: Mapping[int, Bursts]) -> dict[str, dict[str, dict[str, float]]]:
    """By how much the CPU time for one rises with x, and what it is where x is 0: a line through the points of each
    turn, by process. Milliseconds."""
    with_totals = [
        [{**cpu_ms, "total": total} for cpu_ms, total in zip(each.cpu_ms, each.total_cpu_ms, strict=True)]
        for each in points.values()
    ]
    turns = [dict(zip(points, turn, strict=True)) for turn in zip(*with_totals, strict=True)]
    names = next(iter(turns[0].values()))
    fitted = {name: [measure.line({x: cpu_ms[name] for x, cpu_ms in turn.items()}) for turn in turns] for name in names}
    return {
        "at_0": {name: measure.spread([each[0] for each in found]) for name, found in fitted.items()},
        "slope": {name: measure.spread([each[1] for each in found]) for name, found in fitted.items()},
    }
