"""Workflows per second and CPU time per workflow, of the engine and of the floor, alternately in one run, so that
whatever else the machine does is done to both. Prints one line of JSON.

    python -m benchmarks.throughput [--workflows 3000] [--runs 5]
    python -m benchmarks.throughput --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import measure, stage
from benchmarks.settings import WARM_UP


@dataclass(slots=True)
class Bursts:
    """What one side did, run by run."""

    per_s: list[float] = field(default_factory=list)
    cpu_ms: list[dict[str, float]] = field(default_factory=list)  # per workflow, by process

    @property
    def total_cpu_ms(self) -> list[float]:
        return [sum(each.values()) for each in self.cpu_ms]

    def run(self, side: stage.Side, workflows: int) -> None:
        before = side.meter.read()
        wall_s = side.client.ask(f"burst {workflows}")["wall_s"]
        spent = side.meter.since(before)
        self.per_s.append(workflows / wall_s)
        self.cpu_ms.append({name: 1000 * cpu_s / workflows for name, cpu_s in spent.items()})

    def facts(self) -> dict[str, Any]:
        return {
            "workflows_per_s": measure.spread(self.per_s, 1),
            "cpu_ms_per_workflow": measure.spreads(self.cpu_ms) | {"total": measure.spread(self.total_cpu_ms)},
        }


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Engine and floor through Kafka and PostgreSQL."""
    where = stage.servers()
    floor, engine = Bursts(), Bursts()
    with contextlib.ExitStack() as stack:
        sides = []
        for name, roles, bursts in (("floor", stage.FLOOR, floor), ("engine", stage.ENGINE, engine)):
            if options.floor_only and name == "engine":
                continue
            place = stack.enter_context(stage.kafka_and_postgres(name, where))
            side = stack.enter_context(stage.running(place, roles, where))
            side.client.ask(f"burst {options.warm_up}")
            sides.append((side, bursts))
        for _ in range(options.runs):
            for side, bursts in sides:
                bursts.run(side, options.workflows)
    facts = {"floor_" + name: value for name, value in floor.facts().items()}
    if not options.floor_only:
        pairs = zip(engine.per_s, floor.per_s, strict=True)
        cpu_pairs = zip(engine.total_cpu_ms, floor.total_cpu_ms, strict=True)
        facts |= engine.facts()
        facts["ratio"] = measure.spread([mine / best for mine, best in pairs])
        facts["cpu_ratio"] = measure.spread([mine / best for mine, best in cpu_pairs], 2)
    return facts


def alone(options: argparse.Namespace) -> dict[str, Any]:
    """Client, engine and worker in one process, over the embedded log and SQLite."""
    bursts = Bursts()
    with stage.embedded_and_sqlite("alone") as place, stage.running(place, stage.ALONE, None) as side:
        side.client.ask(f"burst {options.warm_up}")
        for _ in range(options.runs):
            bursts.run(side, options.workflows)
    return bursts.facts()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=3_000, help="of each burst")
    parser.add_argument("--runs", type=int, default=5, help="pairs of bursts")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first burst")
    parser.add_argument("--floor-only", action="store_true")
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("throughput", options, compared(options) if options.broker == "kafka" else alone(options))


if __name__ == "__main__":
    main()
