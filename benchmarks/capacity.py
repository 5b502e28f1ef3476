"""What an app takes as it does more, for whoever has to size one: CPU time of each process against the steps of a
workflow, bytes in PostgreSQL and Kafka, memory of an instance that lives, and one partition beside several. A straight
line through workflows of 1, 3 and 10 steps says what a start costs and what a step costs. Prints one line of JSON;
docs/capacity.md calculates with it.

    python -m benchmarks.capacity [--workflows 1000] [--runs 5] [--eager]
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks import footprint, measure, stage
from benchmarks.bursts import Bursts, beside, lines
from benchmarks.settings import PARTITIONS, WARM_UP

STEPS: Final = (1, 3, 10)
COMPARED_STEPS: Final = 3
"""Of workflows that are not about the number of steps."""
SETTLE_S: Final = 2.0
"""Before bytes are read: the last acknowledged messages are tidied away a moment after the last result."""
FIRST_ASLEEP: Final = 1_000
"""Instances before the first look at memory: Python takes its memory in large pieces."""


@dataclass(slots=True)
class Grown:
    """An app all of whose workflows have as many steps, and what it has written."""

    steps: int
    side: stage.Side
    place: stage.Place
    where: stage.Servers
    busy: Bursts = field(default_factory=lambda: Bursts("chains"))
    idle: Bursts = field(default_factory=lambda: Bursts("single_chains"))
    count: int = 0
    log_bytes: int = 0
    before: Mapping[str, int] = field(default_factory=dict)

    def begin(self) -> None:
        self.before = self._stored()

    def run(self, workflows: int) -> None:
        begin = footprint.log_position_bytes(self.place)
        self.busy.run(self.side, workflows, self.steps)
        self.log_bytes += footprint.log_position_bytes(self.place) - begin
        self.count += workflows

    def bytes_each(self) -> dict[str, float]:
        """Per workflow of the bursts."""
        grown = {name: (now - self.before[name]) / self.count for name, now in self._stored().items()}
        return {**grown, "postgresql_log": self.log_bytes / self.count}

    def dense_bytes_each(self) -> dict[str, float]:
        """Per workflow that is in the tables."""
        dense = footprint.dense_table_bytes(self.place)
        return {name: size / footprint.instances(self.place) for name, size in dense.items()}

    def _stored(self) -> dict[str, int]:
        time.sleep(SETTLE_S)
        sizes = {f"postgresql_{name}": size for name, size in footprint.table_bytes(self.place).items()}
        return {**sizes, "kafka": footprint.topic_bytes(self.place, self.where)}


def costs(options: argparse.Namespace, where: stage.Servers) -> dict[str, Any]:
    """Of a start and of a step."""
    apps = []
    with contextlib.ExitStack() as stack:
        for steps in STEPS:
            place = stack.enter_context(stage.kafka_and_postgres(f"steps-{steps}", where))
            side = stack.enter_context(stage.running(place, stage.engine_roles(options), where))
            apps.append(Grown(steps, side, place, where))
            side.client.ask(f"chains {options.warm_up} {steps}")
        for app in apps:
            app.begin()
        for _ in range(options.runs):
            for app in apps:
                app.run(options.workflows)
        written = {app.steps: app.bytes_each() for app in apps}
        for _ in range(options.runs):
            for app in apps:
                app.idle.run(app.side, options.singles, app.steps)
        dense = {app.steps: app.dense_bytes_each() for app in apps}
    return {
        "cpu_ms": _named(lines({app.steps: app.busy for app in apps})),
        "one_at_a_time_cpu_ms": _named(lines({app.steps: app.idle for app in apps})),
        "bytes": _named(_bytes(written)),
        "dense_postgresql_bytes": _named(_bytes(dense)),
        "workflows_per_s_of_steps": {str(app.steps): measure.spread(app.busy.per_s, 1) for app in apps},
    }


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"per_start": found["at_0"], "per_step": found["slope"]}


def _bytes(each: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, int]]:
    names = next(iter(each.values()))
    fitted = {name: measure.line({steps: sizes[name] for steps, sizes in each.items()}) for name in names}
    return {
        "at_0": {name: round(begin) for name, (begin, _) in fitted.items()},
        "slope": {name: round(slope) for name, (_, slope) in fitted.items()},
    }


def memory(options: argparse.Namespace, where: stage.Servers) -> dict[str, Any]:
    """Of the engine's process, as more and more instances wait that it keeps live."""
    first = min(FIRST_ASLEEP, options.asleep)
    with (
        stage.kafka_and_postgres("asleep", where) as place,
        stage.running(place, stage.engine_roles(options), where) as side,
    ):
        engine = side.pids["engine"]
        at_start = measure.rss_bytes(engine)
        side.client.ask(f"asleep {first}")
        few = measure.rss_bytes(engine)
        side.client.ask(f"asleep {options.asleep}")
        each = (measure.rss_bytes(engine) - few) / options.asleep
        return {"engine_at_start": at_start, "per_live_instance": round(each)}


def partitions(options: argparse.Namespace, where: stage.Servers) -> dict[str, Any]:
    """One engine process that owns several, beside one that owns one."""
    done = {1: Bursts("chains"), PARTITIONS: Bursts("chains")}
    with contextlib.ExitStack() as stack:
        sides = {}
        for count in done:
            place = stack.enter_context(stage.kafka_and_postgres(f"partitions-{count}", where, count))
            side = sides[count] = stack.enter_context(stage.running(place, stage.engine_roles(options), where))
            side.client.ask(f"chains {options.warm_up} {COMPARED_STEPS}")
        for _ in range(options.runs):
            for count, side in sides.items():
                done[count].run(side, options.workflows, COMPARED_STEPS)
    return beside(done[PARTITIONS], done[1], "one_partition")


def listening(options: argparse.Namespace, where: stage.Servers) -> dict[str, Any]:
    """What a client process that has waited once spends on workflows of others: it reads all events of the app."""
    done = Bursts("chains")
    roles = {**stage.engine_roles(options), "listener": stage.ENGINE["client"]}
    with stage.kafka_and_postgres("listening", where) as place, stage.running(place, roles, where) as side:
        assert side.listener is not None
        side.listener.ask("singles 1")
        side.client.ask(f"chains {options.warm_up} {COMPARED_STEPS}")
        for _ in range(options.runs):
            done.run(side, options.workflows, COMPARED_STEPS)
    return {"listener_cpu_ms_per_workflow": measure.spread([cpu_ms["listener"] for cpu_ms in done.cpu_ms])}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    where = stage.servers()
    facts = {**costs(options, where), "memory_bytes": memory(options, where), **listening(options, where)}
    return {**facts, **partitions(options, where)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=1_000, help="of each burst")
    parser.add_argument("--singles", type=int, default=100, help="workflows one at a time, of each run")
    parser.add_argument("--asleep", type=int, default=5_000, help="live instances whose memory is looked at")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first burst")
    stage.add_eager_option(parser)
    parser.set_defaults(broker="kafka", database=None)
    options = stage.parsed(parser, arguments)
    stage.report("capacity", options, measured(options))


if __name__ == "__main__":
    main()
