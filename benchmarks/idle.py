"""What the processes of an app cost while there is nothing to do: CPU time as a share of a core, wake-ups, and how
often which table was read. An app that has run some workflows, all finished, is left alone for a while. Prints one line
of JSON.

    python -m benchmarks.idle [--seconds 60]
    python -m benchmarks.idle --broker embedded --database sqlite
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import stage
from benchmarks.settings import WARM_UP

SETTLE_S: Final = 90.0
"""Before the look: those who look into the database once in a while do so once more, a minute after the last commit."""
COUNTED_LATE_S: Final = 15.0
"""What was read: PostgreSQL takes up to 10 s to count it."""


@contextlib.contextmanager
def staged(broker: str) -> Iterator[tuple[stage.Side, stage.Place, bool]]:
    if broker == "kafka":
        where = stage.servers()
        with stage.kafka_and_postgres("idle", where) as place, stage.running(place, stage.ENGINE, where) as side:
            yield side, place, True
    else:
        with stage.embedded_and_sqlite("idle") as place, stage.running(place, stage.ALONE, None) as side:
            yield side, place, False


def observed(options: argparse.Namespace) -> dict[str, Any]:
    with staged(options.broker) as (side, place, has_server):
        side.client.ask(f"burst {options.warm_up}")
        time.sleep(options.settle)
        read = _scans(place.database) if has_server else None
        wakes = {name: _wake_ups(pid) for name, pid in side.pids.items()}
        before, begun_s = side.meter.read(), time.perf_counter()
        time.sleep(options.seconds)
        spent, passed_s = side.meter.since(before), time.perf_counter() - begun_s
        facts: dict[str, Any] = {
            "core_percent": {name: round(100 * cpu_s / passed_s, 2) for name, cpu_s in spent.items()},
            "wake_ups_per_s": {
                name: round((_wake_ups(pid) - wakes[name]) / passed_s, 1) for name, pid in side.pids.items()
            },
        }
        if read is not None:
            time.sleep(COUNTED_LATE_S)  # or the last ones of the time would not be counted
            minutes = (passed_s + COUNTED_LATE_S) / 60
            more = {table: scans - read.get(table, 0) for table, scans in _scans(place.database).items()}
            facts["scans_per_minute"] = {table: round(scans / minutes, 1) for table, scans in more.items() if scans}
        return facts


def _wake_ups(pid: int) -> int:
    """Of all threads: how often one has waited for something, so far."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            count += int(lines["voluntary_ctxt_switches"])
    return count


def _scans(database: str) -> dict[str, int]:
    """Of each table, so far. One statement counts once for each partition that it names. Transactions would be no
    measure: PostgreSQL's own vacuuming is among them."""
    import asyncpg

    async def read() -> dict[str, int]:
        connection = await asyncpg.connect(database)
        try:
            rows = await connection.fetch(
                "SELECT relname, seq_scan + coalesce(idx_scan, 0) AS scans FROM pg_stat_user_tables"
            )
        finally:
            await connection.close()
        return {row["relname"]: row["scans"] for row in rows}

    return asyncio.run(read())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="that are looked at")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="workflows before that")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="seconds between the two")
    stage.add_place_options(parser)
    options = stage.parsed(parser, arguments)
    stage.report("idle", options, observed(options))


if __name__ == "__main__":
    main()
