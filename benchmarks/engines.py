"""What a second engine process costs: the same load on an app with one engine and on one with two, in turns, and the
CPU time of all processes per workflow. On a machine whose cores are all busy with one engine already, the second one
cannot make it faster; what it must not do is make it dearer. Prints one line of JSON.

    python -m benchmarks.engines [--workflows 3000] [--runs 5] [--eager]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks import stage
from benchmarks.bursts import Bursts, beside
from benchmarks.settings import ANSWER_LIMIT_S, WARM_UP

LOOK_EVERY_S: Final = 0.2
OWNERS: Final = "SELECT count(DISTINCT owner) FROM romancy_partitions"


def compared(options: argparse.Namespace) -> dict[str, Any]:
    where = stage.servers()
    one = stage.engine_roles(options)
    two = {**one, "second_engine": one["engine"]}
    done = {1: Bursts(), 2: Bursts()}
    with contextlib.ExitStack() as stack:
        sides = {}
        for engines, roles in ((1, one), (2, two)):
            place = stack.enter_context(stage.kafka_and_postgres(f"engines-{engines}", where))
            side = sides[engines] = stack.enter_context(stage.running(place, roles, where))
            asyncio.run(shared(place.database, engines))
            side.client.ask(f"burst {options.warm_up}")
        for _ in range(options.runs):
            for engines, side in sides.items():
                done[engines].run(side, options.workflows)
    return beside(done[2], done[1], "one_engine")


async def shared(database: str, engines: int) -> None:
    """Returns when as many processes own partitions."""
    import asyncpg

    connection = await asyncpg.connect(database)
    try:
        deadline_s = time.monotonic() + ANSWER_LIMIT_S
        while (owners := await connection.fetchval(OWNERS)) != engines:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{owners} engines own the partitions, and not {engines}")
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        await connection.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=3_000, help="of each burst")
    parser.add_argument("--runs", type=int, default=5, help="pairs of bursts")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before the first burst")
    stage.add_eager_option(parser)
    parser.set_defaults(broker="kafka", database=None)
    options = stage.parsed(parser, arguments)
    stage.report("engines", options, compared(options))


if __name__ == "__main__":
    main()
