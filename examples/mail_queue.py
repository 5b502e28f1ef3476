"""A queue with limits, tasks that overtake others, and runs that take turns: one statement at a time for each customer.

python -m examples.mail_queue
"""

import asyncio

from romancy_stream import App, Concurrency, RateLimit, WorkflowContext

app = App("mail")

# Three at a time in each worker process, and no more than a hundred a second in all of them together.
emails = app.queue("emails", concurrency=3, global_rate=RateLimit(100, per=1.0))


@app.activity(queue=emails)
async def send(to: str, what: str) -> str:
    return f"{what} to {to}"


@app.workflow(concurrency=Concurrency(key="customer", limit=1))
async def monthly_statement(ctx: WorkflowContext, customer: str, month: int) -> str:
    return await send(customer, f"statement {month}")


@app.workflow
async def reset_password(ctx: WorkflowContext, customer: str) -> str:
    return await send.with_options(priority=1)(customer, "a new password")  # before all statements that wait


async def main() -> None:
    async with app:
        handles = [await app.start(monthly_statement, "ada", month) for month in (1, 2, 3)]
        handles.append(await app.start(reset_password, "bob"))
        for handle in handles:
            print(await handle.result(timeout=60))


if __name__ == "__main__":
    asyncio.run(main())
