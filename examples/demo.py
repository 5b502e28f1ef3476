"""`make demo`: two workflows and their timelines; then a worker that is killed in the middle of a third one, and what
a new worker makes of it. Needs nothing but this package: embedded broker, SQLite, a temporary folder.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from rich.console import Console

from examples import crash, orders, user_registration
from romancy_stream import HistoryEntry
from romancy_stream.cli import output, timeline

console = Console()
PATIENCE_S = 30


async def run_examples() -> None:
    for module, workflow, value in (
        (
            user_registration,
            user_registration.user_registration,
            user_registration.UserInput(user_id="123", email="ada@example.com", name="Ada"),
        ),
        (orders, orders.order_workflow, orders.Order(order_id="o-1", customer_id="cust_123", amount=Decimal("99.90"))),
    ):
        async with module.app as app:
            handle = await app.start(workflow, value)
            console.print(f"\n[bold]{workflow.name}[/] returned {await handle.result(timeout=PATIENCE_S)!r}")
            show(await app.history(handle.instance_id))


def show(history: Sequence[HistoryEntry]) -> None:
    output.print_table(timeline.COLUMNS, timeline.rows(history))


def romancy(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("romancy")), *arguments]


def kill_and_recover() -> None:
    console.print("\n[bold]long_haul[/]: six slow steps, and a worker that is killed after two of them")
    subprocess.run(romancy("init", "examples.crash:app"), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(romancy("start", "examples.crash:app", "long_haul", "--id", "trip"), check=True)
    first = subprocess.Popen(romancy("worker", "examples.crash:app", "--log-level", "error"))
    asyncio.run(until_driven(2))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    driven = asyncio.run(until_driven(2))
    console.print(f"[red]kill -9[/] of worker {first.pid}, {driven} legs recorded")
    second = subprocess.Popen(romancy("worker", "examples.crash:app", "--log-level", "error"))
    try:
        asyncio.run(until_driven(6))
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait()
    result, history = asyncio.run(outcome())
    show(history)
    console.print(f"worker {second.pid} finished it: {result}")
    no_activity_twice(history)
    subprocess.run(romancy("verify", "examples.crash:app"), check=True)


async def until_driven(legs: int) -> int:
    """Looks into the database: the broker belongs to the worker. Returns how many legs are recorded."""
    store = crash.app.make_store()
    await store.open()
    try:
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            driven = sum(event.kind == "activity.completed" for event in await store.history("trip"))
            if driven >= legs:
                return driven
            await asyncio.sleep(0.05)
    finally:
        await store.close()
    raise SystemExit(f"the workflow did not reach {legs} legs within {PATIENCE_S} s")


async def outcome() -> tuple[list[str], Sequence[HistoryEntry]]:
    async with crash.app.client() as client:
        result = await client.handle("trip", crash.long_haul).result(timeout=PATIENCE_S)
        return result, await client.history("trip")


def no_activity_twice(history: Sequence[HistoryEntry]) -> None:
    legs = [entry for entry in history if entry.kind == "activity.completed"]
    counts = Counter(entry.ref for entry in legs)
    assert len(counts) == 6, counts
    assert set(counts.values()) == {1}, counts
    workers = Counter(entry.attrs["worker"] for entry in legs)
    assert len(workers) == 2, workers
    shares = " and ".join(f"{count} by worker {worker.rpartition(':')[2]}" for worker, count in workers.items())
    console.print(f"[green]six activities, each recorded once[/]: {shares}")


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    os.environ["PYTHONPATH"] = str(root)
    with tempfile.TemporaryDirectory(prefix="romancy-demo-") as folder:
        os.chdir(folder)  # the apps keep their data in ./.romancy
        asyncio.run(run_examples())
        kill_and_recover()
        os.chdir(root)


if __name__ == "__main__":
    main()
