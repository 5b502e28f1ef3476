"""How long one workflow takes from its start to its result when nothing else happens: the engine and the floor, one
workflow at a time, in turns. Prints one line of JSON.

    python -m benchmarks.latency [--workflows 200] [--runs 3] [--eager]
    python -m benchmarks.latency --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks import measure, stage
from benchmarks.settings import WARM_UP


def compared(options: argparse.Namespace) -> dict[str, Any]:
    latencies_s: dict[str, list[list[float]]] = {"floor": [], "engine": []}
    with stage.both_running(options) as sides:
        for _ in range(options.runs):
            for name, runs in latencies_s.items():
                runs.append(sides[name].side.client.ask(f"singles {options.workflows}")["latencies_s"])
    floor, engine = latencies_s["floor"], latencies_s["engine"]
    ratios = [
        measure.percentile(mine, 0.5) / measure.percentile(best, 0.5) for mine, best in zip(engine, floor, strict=True)
    ]
    return {**facts(engine), **{"floor_" + name: value for name, value in facts(floor).items()}} | {
        "p50_ratio": measure.spread(ratios, 2)
    }


def facts(runs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Percentiles of each run, and how they differ from run to run."""
    return {
        f"p{percent}_ms": measure.spread([1000 * measure.percentile(run, percent / 100) for run in runs], 2)
        for percent in (50, 99)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=200, help="of each run, one after another")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first run")
    stage.add_eager_option(parser)
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("latency", options, compared(options))


if __name__ == "__main__":
    main()
