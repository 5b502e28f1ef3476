"""How soon work goes on after its owner was killed: many instances wait, the engine's process is killed, a few events
are sent, and another process joins. From the moment when the group gives it the partitions to the commit in which the
first instance completes; and how many instances' histories were read for it. Prints one line of JSON.

    python -m benchmarks.takeover [--workflows 10000] [--runs 5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks import measure, stage
from benchmarks.loops import loop_factory
from romancy_stream.broker.port import TP
from romancy_stream.cli.interpreter import set_up_interpreter
from romancy_stream.engine.commit import Commit
from romancy_stream.engine.history import WORKFLOW_COMPLETED
from romancy_stream.engine.inputs import Loaded
from romancy_stream.runtime.processor import Processor

WOKEN: Final = 8
"""Instances that are sent an event while nobody owns them; by their ids they lie in any partitions."""
OWNER: Final = {"engine": ("-m", "benchmarks.takeover", "--owner"), "client": ("-m", "benchmarks.client")}


def taken_over(options: argparse.Namespace) -> dict[str, Any]:
    where = stage.servers()
    rows: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(stage.kafka_and_postgres("takeover", where))
        side = stack.enter_context(stage.running(place, OWNER, where))
        side.client.ask(f"asleep {options.workflows}")
        owner = side.pids["engine"]
        for _ in range(options.runs):
            os.kill(owner, signal.SIGKILL)
            killed_s = time.time()
            side.client.ask(f"wake {WOKEN}")
            successor = stage.Process(OWNER["engine"], place)
            stack.callback(successor.stop)
            rows.append({**successor.answer(), "killed_s": killed_s})
            side.client.ask("woken 0")
            owner = successor.pid
    return {
        "waiting": options.workflows,
        "first_progress_ms": _spread(rows, "assigned_s", "first_s"),
        "loaded_ms": _spread(rows, "assigned_s", "loaded_s"),
        "killed_to_assigned_s": measure.spread([row["assigned_s"] - row["killed_s"] for row in rows], 1),
        "histories_read": measure.spread([row["histories_read"] for row in rows]),
    }


def _spread(rows: Sequence[Mapping[str, float]], begin: str, end: str) -> dict[str, float]:
    return measure.spread([1000 * (row[end] - row[begin]) for row in rows], 1)


# -- the one that takes over -----------------------------------------------------------------------------------------
class TimedProcessor(Processor):
    """Notes when it was given partitions, when it had loaded them, and when an instance of theirs first completed."""

    assigned_s = 0.0
    loaded_s = 0.0
    histories_read = 0
    told = False

    async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        self.assigned_s = time.time()
        positions = await super().on_assigned(partitions)
        self.loaded_s = time.time()
        return positions

    async def _load(self, *inputs: Any, **more: Any) -> Loaded:
        loaded = await super()._load(*inputs, **more)
        self.histories_read += len(loaded.histories)
        return loaded

    def _published(self, commit: Commit) -> None:
        super()._published(commit)
        if not self.told and any(event.kind == WORKFLOW_COMPLETED for event in commit.happened()):
            self.told = True
            facts = {"assigned_s": self.assigned_s, "loaded_s": self.loaded_s, "first_s": time.time()}
            print(json.dumps(facts | {"histories_read": self.histories_read}), flush=True)


async def _own() -> None:
    from benchmarks.app import app  # whose place is known in this process only

    async with app:
        await app.wait_failed()


def own() -> None:
    """The whole app; says when it made progress."""
    from romancy_stream.runtime import service

    vars(service)["Processor"] = TimedProcessor
    set_up_interpreter()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_own())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=10_000, help="instances that wait")
    parser.add_argument("--runs", type=int, default=5, help="owners that are killed")
    parser.add_argument("--owner", action="store_true", help=argparse.SUPPRESS)
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    if options.owner:
        own()
    else:
        stage.report("takeover", options, taken_over(options))


if __name__ == "__main__":
    main()
