"""A night on which the carrier is down: orders fail, and in the morning somebody puts all of them right at once. A
listener keeps the score meanwhile, and what is done with is not kept for ever.

    python -m examples.repairs
"""

import asyncio
from collections import Counter
from datetime import timedelta

from romancy_stream import App, Happening, Listener, RetryPolicy, WorkflowContext, WorkflowFailedError

app = App("night", retention=timedelta(days=90))


class Carrier:
    is_up = False


class Score(Listener):
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def on_activity_completed(self, happening: Happening) -> None:
        if happening.details["name"] == "charge":
            self.counts["charged"] += 1

    def on_workflow_completed(self, happening: Happening) -> None:
        self.counts["completed"] += 1

    def on_workflow_failed(self, happening: Happening) -> None:
        self.counts[f"failed: {happening.details['error']['message']}"] += 1


@app.activity
async def charge(order_id: str) -> str:
    return f"payment-of-{order_id}"


@app.activity(retry=RetryPolicy.fixed(2, 0.05))
async def hand_over(order_id: str) -> str:
    if not Carrier.is_up:
        raise ConnectionError("the carrier does not answer")
    return f"TRACK-{order_id}"


@app.workflow
async def order(ctx: WorkflowContext, order_id: str) -> str:
    payment = await charge(order_id)
    return f"{payment} {await hand_over(order_id)}"


async def main() -> None:
    score = Score()
    app.add_listener(score)
    async with app:
        handles = [await app.start(order, f"o-{n}", instance_id=f"o-{n}") for n in range(1, 6)]
        for handle in handles:
            try:
                await handle.result(timeout=30)
            except WorkflowFailedError as error:
                print(f"{handle.instance_id} failed: {error.__cause__}")

        Carrier.is_up = True
        result = await app.retry_all(workflow_name="order")
        print(f"{result.done} retried, {result.refused_count} refused")
        for handle in handles:
            print(await handle.result(timeout=30), "in run", (await handle.get()).run)
        print(score.counts["charged"], "charges for", len(handles), "orders")
    for what, count in sorted(score.counts.items()):
        print(count, what)


if __name__ == "__main__":
    asyncio.run(main())
