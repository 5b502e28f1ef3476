"""Workflows whose runs take turns, and queues with one rate for all, on every broker and every database."""

from __future__ import annotations

import asyncio

from romancy_stream import Concurrency, RateLimit, WorkflowContext
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 60


async def test_one_run_at_a_time_for_each_customer(make_app: MakeApp) -> None:
    app = make_app()
    inside: dict[str, int] = {}
    order: list[tuple[str, int]] = []
    go = asyncio.Event()

    @app.activity
    async def charge(customer: str, n: int) -> int:
        inside[customer] = inside.get(customer, 0) + 1
        assert inside[customer] == 1
        order.append((customer, n))
        await go.wait()
        inside[customer] -= 1
        return n

    @app.workflow(concurrency=Concurrency(key="customer", limit=1))
    async def bill(ctx: WorkflowContext, customer: str, n: int) -> int:
        return await charge(customer, n)

    async with app:
        handles = []
        for n in range(3):
            for customer in ("ada", "bob"):
                handles.append(await app.start(bill.with_options(instance_id=f"{customer}-{n}"), customer, n))

                async def started(instance_id: str = f"{customer}-{n}") -> bool:
                    return await app.get_instance(instance_id) is not None

                await eventually(started, deadline_s=PATIENCE_S)
        await eventually(lambda: len(order) == 2, deadline_s=PATIENCE_S)
        waiting = await app.get_instance("ada-1")
        assert waiting is not None
        assert (waiting.status, list(waiting.waiting_for)) == ("running", ["slot customer=ada"])
        go.set()
        assert [await handle.result(timeout=PATIENCE_S) for handle in handles] == [0, 0, 1, 1, 2, 2]
    for customer in ("ada", "bob"):
        assert [n for name, n in order if name == customer] == [0, 1, 2]


async def test_a_rate_for_all_processes(make_app: MakeApp) -> None:
    app = make_app()
    mail = app.queue("mail", global_rate=RateLimit(4, per=1.0))
    sent = []

    @app.activity(queue=mail)
    async def send(n: int) -> int:
        sent.append(n)
        return n

    @app.workflow
    async def mailing(ctx: WorkflowContext, first: int) -> list[int]:
        return list(await asyncio.gather(*(send(first + n) for n in range(4))))

    async with app:
        handles = [await app.start(mailing, first) for first in (0, 4)]
        assert [await handle.result(timeout=PATIENCE_S) for handle in handles] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        deferred = [
            entry
            for handle in handles
            for entry in await app.history(handle.instance_id)
            if entry.kind == "activity.deferred"
        ]
        # The first goes at once; the others wait for their time, unless the engine itself took that long.
        assert deferred
    assert sorted(sent) == list(range(8))
