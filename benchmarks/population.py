"""What reading and starting costs in an app with many instances beside one with few: a list, its next page, a list of
one status, searches by input, and starts. Both are filled with copies of orders that the engine has run (`filling`) and
then run side by side, in turns. Milliseconds at the median of each run, and how much slower the large one is. Prints
one line of JSON.

    python -m benchmarks.population [--large 1000000] [--small 10000] [--runs 5]
    python -m benchmarks.population --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from benchmarks import filling, measure, stage
from benchmarks.settings import WARM_UP

ORDERS: Final = ("newest", "next_page", "of_status", "find", "find_in_array", "find_common", "start", "start_to_result")


@contextlib.contextmanager
def populated(name: str, count: int, options: argparse.Namespace) -> Iterator[stage.Process]:
    """The client of an app with as many instances, running."""
    with contextlib.ExitStack() as stack:
        where = stage.servers() if options.broker == "kafka" else None
        here = stage.embedded_and_sqlite(name) if where is None else stage.kafka_and_postgres(name, where)
        place, roles = stack.enter_context(here), stage.ALONE if where is None else stage.TOGETHER
        with stage.running(place, roles, where) as models:
            models.client.ask("models 1")
        filling.fill(place.database, count)
        yield stack.enter_context(stage.running(place, roles, where)).client


def compared(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"small": options.small, "large": options.large}
    p50_ms: dict[str, dict[str, list[float]]] = {order: {size: [] for size in sizes} for order in ORDERS}
    with contextlib.ExitStack() as stack:
        clients = {size: stack.enter_context(populated(size, count, options)) for size, count in sizes.items()}
        for client in clients.values():
            client.ask(f"burst {options.warm_up}")
        for _ in range(options.runs):
            for order in ORDERS:
                for size, client in clients.items():
                    latencies_s = client.ask(f"{order} {options.calls}")["latencies_s"]
                    p50_ms[order][size].append(1000 * measure.percentile(latencies_s, 0.5))
    return {"small": options.small, "large": options.large, "calls": options.calls} | {
        order: {
            "p50_ms": measure.spread(each["large"], 2),
            "small_p50_ms": measure.spread(each["small"], 2),
            "ratio": measure.spread([many / few for many, few in zip(each["large"], each["small"], strict=True)], 2),
        }
        for order, each in p50_ms.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=1_000_000, help="instances of the one app")
    parser.add_argument("--small", type=int, default=10_000, help="instances of the other one")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=50, help="of each sort in a run, one after another")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first run")
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("population", options, compared(options))


if __name__ == "__main__":
    main()
