"""The same workloads on another engine and on ours, in turns within one run. Prints one line of JSON for each rival and
workload; for a rival that cannot be had, one that says why.

    python -m benchmarks.rivals dbos|restate|temporal|edda|all [--runs 5]
    python -m benchmarks.rivals all --workloads 'burst 1000' 'sequential 1000'
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from benchmarks import measure, stage
from benchmarks.rivals.installing import Unavailable, reason
from benchmarks.rivals.staging import RIVALS, running

WORKLOADS: Final = ("burst 1000", "singles 100", "parallel 100", "sequential 1000", "sequential 5000", "events 200")
WARM_UP: Final = 100
"""Workflows before the first measurement, on either side; the slowest rival takes several seconds for them."""
OURS: Final = {"together": stage.TOGETHER, "apart": stage.ENGINE}


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a workload gave."""

    facts: Mapping[str, float]
    cpu_ms: Mapping[str, float]  # by process; per workflow when there are many


def workload(text: str) -> str:
    kind, _, count = text.partition(" ")
    known = dict.fromkeys(each.partition(" ")[0] for each in WORKLOADS)
    if kind not in known or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: one of {', '.join(known)}, and a number, as in {WORKLOADS[0]!r}")
    return text


def once(side: stage.Side, workload: str) -> Run:
    kind, count = workload.split()
    before = side.meter.read()
    answer = side.client.ask(workload)
    many = int(count) if kind in ("burst", "singles") else 1
    cpu_ms = {name: 1000 * cpu_s / many for name, cpu_s in side.meter.since(before).items()}
    if kind == "singles":
        latencies_ms = [1000 * latency_s for latency_s in answer["latencies_s"]]
        return Run({f"p{n}_ms": measure.percentile(latencies_ms, n / 100) for n in (50, 99)}, cpu_ms)
    if kind == "burst":
        return Run({"workflows_per_s": many / answer["wall_s"]}, cpu_ms)
    return Run({"seconds": answer["wall_s"]}, cpu_ms)


def compared(ours: Sequence[Run], theirs: Sequence[Run], all_cpu: bool) -> dict[str, Any]:
    """For each fact: ours, theirs, and ours divided by theirs, pair by pair."""
    facts: dict[str, Any] = {}
    for name in ours[0].facts:
        facts |= _beside(name, [run.facts[name] for run in ours], [run.facts[name] for run in theirs])
    if all_cpu:
        totals = [[sum(run.cpu_ms.values()) for run in runs] for runs in (ours, theirs)]
        facts |= _beside("cpu_ms", *totals)
        facts["cpu_ms_by_process"] = measure.spreads([run.cpu_ms for run in ours])
        facts["rival_cpu_ms_by_process"] = measure.spreads([run.cpu_ms for run in theirs])
    return facts


def _beside(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """CPU time is counted in ticks: what is less than one has no ratio."""
    facts: dict[str, Any] = {name: measure.spread(ours), f"rival_{name}": measure.spread(theirs)}
    if all(theirs):
        facts[f"{name}_ratio"] = measure.spread([a / b for a, b in zip(ours, theirs, strict=True)])
    return facts


def measured(name: str, options: argparse.Namespace, where: stage.Servers) -> Iterator[dict[str, Any]]:
    """A line for each workload. Raises Unavailable, or RuntimeError when a process ended."""
    with contextlib.ExitStack() as stack:
        theirs, scene = stack.enter_context(running(name, where))
        place = stack.enter_context(stage.kafka_and_postgres(f"beside-{name}", where))
        ours = stack.enter_context(stage.running(place, OURS[options.ours], where))
        for side in (theirs, ours):
            side.client.ask(f"burst {options.warm_up}")
        for workload in options.workloads:
            pairs = [(once(theirs, workload), once(ours, workload)) for _ in range(options.runs)]
            yield {
                "workload": workload,
                "runs": options.runs,
                "machine": measure.machine(),
                **compared([mine for _, mine in pairs], [other for other, _ in pairs], scene.all_cpu),
            }


def report(name: str, lines: Callable[[], Iterator[Mapping[str, Any]]]) -> None:
    """Whatever becomes of one rival, the next one has its turn."""
    about = {"benchmark": "rivals", "rival": name, "version": RIVALS[name].packages.version}
    try:
        for line in lines():
            print(json.dumps(about | dict(line)), flush=True)
    except Unavailable as error:
        print(json.dumps(about | {"unavailable": str(error)}), flush=True)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        print(json.dumps(about | {"failed": reason(str(error))}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rivals", nargs="+", choices=[*RIVALS, "all"])
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs of each workload")
    parser.add_argument(
        "--workloads", nargs="+", type=workload, default=WORKLOADS, help=f"of {', '.join(map(repr, WORKLOADS))}"
    )
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first run")
    parser.add_argument(
        "--ours", choices=list(OURS), default="together", help="engine and worker in one process, or two"
    )
    options = parser.parse_args(arguments)
    names = list(RIVALS) if "all" in options.rivals else options.rivals
    where = stage.servers()
    for name in names:
        report(name, partial(measured, name, options, where))


if __name__ == "__main__":
    main()
