"""Workflows per second and CPU time per workflow, of the engine and of the floor, alternately in one run, so that
whatever else the machine does is done to both. Prints one line of JSON.

    python -m benchmarks.throughput [--workflows 3000] [--runs 5] [--eager]
    python -m benchmarks.throughput --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks import footprint, stage
from benchmarks.bursts import Bursts, beside
from benchmarks.settings import WARM_UP


def compared(options: argparse.Namespace) -> dict[str, Any]:
    done = {name: Bursts() for name in (("floor",) if options.floor_only else ("floor", "engine"))}
    with stage.both_running(options, list(done)) as sides:
        for _ in range(options.runs):
            for name, bursts in done.items():
                bursts.run(sides[name].side, options.workflows)
        if options.floor_only:
            return {f"floor_{name}": value for name, value in done["floor"].facts().items()}
        eager = (
            {"eager_share_of_steps": round(footprint.eager_share(sides["engine"].place), 2)} if options.steps else {}
        )
    return {**beside(done["engine"], done["floor"], "floor"), **eager}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=3_000, help="of each burst")
    parser.add_argument("--runs", type=int, default=5, help="pairs of bursts")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first burst")
    parser.add_argument("--floor-only", action="store_true")
    stage.add_eager_option(parser)
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("throughput", options, compared(options))


if __name__ == "__main__":
    main()
