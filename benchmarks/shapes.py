"""Shapes of work other than many small workflows: parallel steps, a long chain of steps, instances woken by an event
each, timers that are all due at once, one workflow beside an activity that computes, one with large payloads. Median
and spread of some runs beside what others have published for a machine like this one. Prints one line of JSON.

    python -m benchmarks.shapes [--runs 5]
    python -m benchmarks.shapes --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from benchmarks import measure, stage
from benchmarks.settings import WARM_UP

SHAPES: Final = (
    "parallel 100",
    "sequential 1000",
    "sequential 5000",
    "events 200",
    "timers 10000",
    "computing 5",
    "payload 100000",
)
RIVALS_S: Final = {
    "parallel 100": {"restate": 0.028, "dbos": 0.454},
    "sequential 1000": {"restate": 1.25, "dbos": 5.6},
    "sequential 5000": {"restate": 5.9, "dbos": 24.0},
    "events 200": {"restate": 0.26, "dbos": 2.3},
}
"""Seconds, as measured by others on two cores: for orientation, not in the same run."""


def measured(options: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        client = _client(options, stack)
        client.ask(f"burst {options.warm_up}")
        return {shape: _facts(shape, client, options.runs) for shape in options.shapes or SHAPES}


def _client(options: argparse.Namespace, stack: contextlib.ExitStack) -> stage.Process:
    if options.broker == "embedded":
        place = stack.enter_context(stage.embedded_and_sqlite("shapes"))
        return stack.enter_context(stage.running(place, stage.ALONE, None)).client
    where = stage.servers()
    place = stack.enter_context(stage.kafka_and_postgres("shapes", where))
    return stack.enter_context(stage.running(place, stage.TOGETHER, where)).client


def _facts(shape: str, client: stage.Process, runs: int) -> dict[str, Any]:
    answers = [client.ask(shape) for _ in range(runs)]
    facts: dict[str, Any] = {"seconds": measure.spread([answer["wall_s"] for answer in answers], 3)}
    if "late_step_s" in answers[0]:
        ratios = [answer["late_step_s"] / answer["early_step_s"] for answer in answers]
        facts["last_steps_to_100th"] = measure.spread(ratios, 2)
    return facts | {f"{name}_s": seconds for name, seconds in RIVALS_S.get(shape, {}).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each shape")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first run")
    parser.add_argument("--shapes", nargs="*", help=f"of {', '.join(map(repr, SHAPES))}; all of them")
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("shapes", options, measured(options))


if __name__ == "__main__":
    main()
