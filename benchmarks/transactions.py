"""Activities with a transaction: each writes a row through its session and publishes an event, both of which commit
with its result. How many per second, and how many a core of the worker does. The client counts the rows after each
run. Prints one line of JSON.

    python -m benchmarks.transactions [--activities 1000] [--runs 5]
    python -m benchmarks.transactions --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import measure, stage
from benchmarks.bursts import Bursts
from benchmarks.settings import WARM_UP


@contextlib.contextmanager
def staged(broker: str) -> Iterator[tuple[stage.Side, str]]:
    """And the name of the process that does the activities."""
    if broker == "kafka":
        where = stage.servers()
        with stage.kafka_and_postgres("booking", where) as place, stage.running(place, stage.ENGINE, where) as side:
            yield side, "worker"
    else:
        with stage.embedded_and_sqlite("booking") as place, stage.running(place, stage.ALONE, None) as side:
            yield side, "client"


def measured(options: argparse.Namespace) -> dict[str, Any]:
    done = Bursts("bookings", ("activity", "activities"))
    with staged(options.broker) as (side, worker):
        side.client.ask("open_books")
        side.client.ask(f"bookings {options.warm_up}")
        for _ in range(options.runs):
            done.run(side, options.activities)
    per_core_s = [1000 / cpu_ms[worker] for cpu_ms in done.cpu_ms]
    return {"activities": options.activities, **done.facts(), f"per_core_s_of_{worker}": measure.spread(per_core_s, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activities", type=int, default=1_000, help="of each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="activities before the first run")
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("transactions", options, measured(options))


if __name__ == "__main__":
    main()
