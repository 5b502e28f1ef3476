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
from pathlib import Path

from rich.console import Console
from romancy_stream.cli.timeline import timeline

from examples import crash, orders, user_registration
from romancy_stream import App, HistoryEntry

console = Console()
PATIENCE_S = 30


async def run_examples() -> None:
    for module, workflow, value in (
        (
            user_registration,
            user_registration.user_registration,
            user_registration.UserInput(user_id="123", email="ada@example.com", name="Ada"),
        ),
        (orders, orders.order_workflow, orders.Order(order_id="o-1", customer_id="cust_123", amount="99.90")),
    ):
        async with module.app as app:
            handle = await app.start(workflow, value)
            console.print(f"\n[bold]{workflow.name}[/] returned {await handle.result(timeout=PATIENCE_S)!r}")
            console.print(timeline(await app.history(handle.instance_id)))


def romancy(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "romancy_stream.cli", *arguments]


async def legs_driven(app: App) -> int:
    store = app.make_store()
    await store.open()
    try:
        return sum(event.kind == "activity.completed" for event in await store.history("trip"))
    finally:
        await store.close()


async def kill_and_recover() -> None:
    console.print("\n[bold]long_haul[/]: six slow steps, and a worker that is killed after two of them")
    subprocess.run(romancy("start", "examples.crash:app", "long_haul", "--id", "trip"), check=True)
    first = subprocess.Popen(romancy("worker", "examples.crash:app", "--log-level", "error"))
    await until_driven(crash.app, 2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    console.print(f"[red]kill -9[/] of worker {first.pid}, {await legs_driven(crash.app)} legs recorded")
    second = subprocess.Popen(romancy("worker", "examples.crash:app", "--log-level", "error"))
    try:
        await until_driven(crash.app, 6)
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait()
    async with crash.app.client() as client:
        result = await client.handle("trip", crash.long_haul).result(timeout=PATIENCE_S)
        history = await client.history("trip")
    console.print(timeline(history))
    console.print(f"worker {second.pid} finished it: {result}")
    no_activity_twice(history)


async def until_driven(app: App, legs: int) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while await legs_driven(app) < legs:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"the workflow did not reach {legs} legs within {PATIENCE_S} s")
        await asyncio.sleep(0.05)


def no_activity_twice(history: list[HistoryEntry]) -> None:
    counts = Counter(entry.ref for entry in history if entry.kind == "activity.completed")
    assert len(counts) == 6, counts
    assert set(counts.values()) == {1}, counts
    console.print("[green]six activities, each recorded once[/]")


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    os.environ["PYTHONPATH"] = str(root)
    with tempfile.TemporaryDirectory(prefix="romancy-demo-") as folder:
        os.chdir(folder)  # the apps keep their data in ./.romancy
        asyncio.run(run_examples())
        asyncio.run(kill_and_recover())
        os.chdir(root)


if __name__ == "__main__":
    main()
