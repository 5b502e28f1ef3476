"""Workflows per second and CPU time per workflow, of the engine and of the floor, alternately in one run, so that
whatever else the machine does is done to both. Prints one line of JSON.

    python -m benchmarks.throughput [--workflows 3000] [--runs 5] [--eager]
    python -m benchmarks.throughput --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

from benchmarks import footprint, stage
from benchmarks.bursts import Bursts, beside
from benchmarks.settings import WARM_UP


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Engine and floor through Kafka and PostgreSQL."""
    where = stage.servers()
    floor, engine = Bursts(), Bursts()
    with contextlib.ExitStack() as stack:
        sides = []
        for name, roles, done in (
            ("floor", stage.floor_roles(options), floor),
            ("engine", stage.engine_roles(options), engine),
        ):
            if options.floor_only and name == "engine":
                continue
            place = stack.enter_context(stage.kafka_and_postgres(name, where))
            side = stack.enter_context(stage.running(place, roles, where))
            side.client.ask(f"burst {options.warm_up}")
            sides.append((side, done))
        for _ in range(options.runs):
            for side, done in sides:
                done.run(side, options.workflows)
        if options.floor_only:
            return {f"floor_{name}": value for name, value in floor.facts().items()}
        eager = {"eager_share_of_steps": round(footprint.eager_share(place), 2)} if options.steps else {}
    return {**beside(engine, floor, "floor"), **eager}


def alone(options: argparse.Namespace) -> dict[str, Any]:
    """Client, engine and worker in one process, over the embedded log and SQLite."""
    done = Bursts()
    with stage.embedded_and_sqlite("alone") as place, stage.running(place, stage.ALONE, None) as side:
        side.client.ask(f"burst {options.warm_up}")
        for _ in range(options.runs):
            done.run(side, options.workflows)
    return done.facts()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=3_000, help="of each burst")
    parser.add_argument("--runs", type=int, default=5, help="pairs of bursts")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first burst")
    parser.add_argument("--floor-only", action="store_true")
    stage.add_eager_option(parser)
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("throughput", options, compared(options) if options.broker == "kafka" else alone(options))


if __name__ == "__main__":
    main()
