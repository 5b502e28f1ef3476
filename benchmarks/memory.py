"""What the processes of an app hold in memory as they run more and more workflows: after 100,000 no more than after
10,000. Prints one line of JSON.

    python -m benchmarks.memory [--workflows 100000] [--every 10000]
    python -m benchmarks.memory --broker kafka --database postgresql
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from benchmarks import measure, stage

BURST: Final = 1_000
"""Workflows that are under way together: what they hold while they run is not what is looked for."""
MIB: Final = 1024 * 1024


@contextlib.contextmanager
def staged(broker: str) -> Iterator[stage.Side]:
    if broker == "kafka":
        where = stage.servers()
        with stage.kafka_and_postgres("memory", where) as place, stage.running(place, stage.ENGINE, where) as side:
            yield side
    else:
        with stage.embedded_and_sqlite("memory") as place, stage.running(place, stage.ALONE, None) as side:
            yield side


def series(options: argparse.Namespace) -> dict[str, Any]:
    rss_mib: dict[str, list[float]] = {}
    counts: list[int] = []
    done = 0
    with staged(options.broker) as side:
        while done < options.workflows:
            burst = min(BURST, options.every - done % options.every, options.workflows - done)
            side.client.ask(f"burst {burst}")
            done += burst
            if done % options.every == 0 or done == options.workflows:
                counts.append(done)
                for name, pid in side.pids.items():
                    rss_mib.setdefault(name, []).append(round(measure.rss_bytes(pid) / MIB, 1))
    return {
        "after_workflows": counts,
        "rss_mib": rss_mib,
        "growth": {name: round(values[-1] / values[0], 3) for name, values in rss_mib.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10_000, help="workflows between two looks at the memory")
    stage.add_place_options(parser, broker="embedded")
    options = stage.parsed(parser, arguments)
    stage.report("memory", options, series(options))


if __name__ == "__main__":
    main()
