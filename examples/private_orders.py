"""Secrets and large values: nothing that is written down holds them, and the code does not notice. Then a new key
comes, and instances that began with the old one go on.

    python -m examples.private_orders
"""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from romancy_stream import App, Encryption, PayloadError, Payloads, WorkflowContext

HOME = Path("private-orders")
OLD, NEW = Encryption.new_key(), Encryption.new_key()  # elsewhere: from a file that only the app may read


def with_keys(**keys: str) -> App:
    """Each call stands for a process that was started anew."""
    payloads = Payloads(codec=Encryption(keys), store=str(HOME / "payloads"), threshold_bytes=10_000)
    app = App("private", broker=f"embedded://{HOME / 'log'}", database=f"sqlite:///{HOME / 'db'}", payloads=payloads)

    @app.activity
    async def write_contract(customer: str) -> str:
        return f"contract of {customer}. " * 10_000

    @app.workflow
    async def order(ctx: WorkflowContext, customer: str) -> str:
        contract = await write_contract(customer)
        await ctx.wait_event("signed", match={"order": ctx.instance_id})
        return f"{customer} has signed {len(contract):,} characters"

    return app


async def main() -> None:
    async with with_keys(old=OLD) as app:
        await app.start_by_name("order", "Ada Lovelace", instance_id="o-1")
        await until_it_waits(app)
    look("Ada Lovelace")

    async with with_keys(old=OLD, new=NEW) as app:
        await app.send_event(type="signed", data={"order": "o-1"})
        print(await app.handle("o-1").result(timeout=30))

    async with with_keys(old=OLD).client() as client:
        try:
            await client.handle("o-1").result(timeout=30)
        except PayloadError as error:
            print(f"without the new key: {error}")


async def until_it_waits(app: App) -> None:
    for _ in range(300):
        if (await app.list_instances(status="waiting_for_event")).instances:
            return
        await asyncio.sleep(0.1)


def look(for_what: str) -> None:
    """Through everything that is on the disk."""
    with closing(sqlite3.connect(HOME / "db")) as database:
        [(kept,)] = database.execute("SELECT payload FROM romancy_history WHERE kind = 'activity.completed'").fetchall()
    print(f"in the history: {kept[:30]}...")
    found = [path for path in HOME.rglob("*") if path.is_file() and for_what.encode() in path.read_bytes()]
    print(f"{len(found)} files have {for_what!r} in them")


if __name__ == "__main__":
    asyncio.run(main())
