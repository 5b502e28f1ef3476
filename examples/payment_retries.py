"""Retry policies: the default, one of an activity's own, presets, and one for a single call. The waits between the
attempts are timers of the engine: they survive a crash and hold no worker.

    python -m examples.payment_retries
"""

import asyncio

from romancy_stream import ActivityContext, App, RetryExhaustedError, RetryPolicy, WorkflowContext

app = App("payments", default_retry_policy=RetryPolicy.exponential(10, 0.05, 1.0))


@app.activity
async def call_payment_api(ctx: ActivityContext, amount: float) -> str:
    """Fails twice, as services do. The idempotency key is the same in every attempt: hand it to the service."""
    if ctx.attempt < 3:
        raise ConnectionError(f"attempt {ctx.attempt}: no answer")
    return f"charged {amount:.2f} with key {ctx.idempotency_key}"


@app.activity(retry=RetryPolicy.fixed(3, 0.05))
async def call_broken_api() -> None:
    raise ConnectionError("down for the day")


@app.activity(retry=RetryPolicy.none())
async def call_once() -> str:
    return "called once"


@app.workflow
async def payment(ctx: WorkflowContext, amount: float) -> list[str]:
    charged = await call_payment_api(amount)
    once = await call_once()
    try:
        await call_broken_api.with_options(retry=RetryPolicy.fixed(2, 0.05))()
    except RetryExhaustedError as error:
        return [charged, once, f"gave up after {error.attempts} attempts: {error.__cause__}"]
    return [charged, once]


async def main() -> None:
    async with app:
        handle = await app.start(payment, 42.0)
        for line in await handle.result(timeout=30):
            print(line)
        for entry in await app.history(handle.instance_id):
            print(entry.seq, entry.kind, entry.ref or "", entry.attrs.get("attempt", ""))


if __name__ == "__main__":
    asyncio.run(main())
