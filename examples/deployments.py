"""Three deployments of one program while its orders are under way. `romancy replay-check` warns of the second one,
which goes another way than old orders went; deployed all the same, it halts them, and nothing is lost. The third one
has a patch, and what was halted goes on with it. Its other workflow has become two versions.

    python -m examples.deployments
"""

import asyncio
import subprocess

from romancy_stream import App, WorkflowContext


def build(number: int) -> App:
    """The program as it was deployed. In real life these are three commits of one file."""
    app = App("deployments")

    @app.activity
    async def step(order_id: str, what: str) -> str:
        return f"{order_id} {what}"

    @app.workflow
    async def order(ctx: WorkflowContext, order_id: str) -> list[str]:
        done = [await step(order_id, "packed")]
        if number == 2 or (number == 3 and ctx.patched("inspection")):
            done.append(await step(order_id, "inspected"))
        await ctx.wait_event("truck.came")
        return [*done, await step(order_id, "shipped")]

    @app.workflow(name="price")
    async def price(ctx: WorkflowContext, net: int) -> int:
        await ctx.wait_event("price.asked")
        return net * 119 // 100

    if number == 3:

        @app.workflow(name="price", version="2027")
        async def price_2027(ctx: WorkflowContext, net: int) -> int:
            await ctx.wait_event("price.asked")
            return net * 120 // 100

    return app


first, second, third = build(1), build(2), build(3)
app = third


def replay_check(name: str) -> None:
    """What a CI job runs before a deployment; exit code 1 would stop it."""
    command = ["romancy", "replay-check", f"examples.deployments:{name}", "--from-db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"before the {name} deployment, exit code {done.returncode}: {done.stdout.splitlines()[-1]}")


async def until(app: App, waiting: int, parked: int = 0) -> None:
    """Until so many instances wait for an event, or are parked."""
    while True:
        instances = (await app.list_instances()).instances
        halted = sum(each.parked is not None for each in instances)
        if halted == parked and sum(each.status == "waiting_for_event" for each in instances) == waiting:
            return
        await asyncio.sleep(0.05)


async def main() -> None:
    async with first:
        await first.start_by_name("order", "o-1", instance_id="o-1")
        await first.start_by_name("price", 100, instance_id="p-1")
        await until(first, waiting=2)

    replay_check("second")
    async with second:
        await second.send_event(type="truck.came", subject="o-1")
        await until(second, waiting=1, parked=1)
        parked = await second.handle("o-1").get()
        print(parked.parked)

    replay_check("third")
    async with third:
        print(await third.handle("o-1").result(timeout=30))
        await third.start_by_name("order", "o-2", instance_id="o-2")
        await third.start_by_name("price", 100, instance_id="p-2")
        await third.send_event(type="truck.came", subject="o-2")
        print(await third.handle("o-2").result(timeout=30))
        await until(third, waiting=2)
        for each in await third.versions():
            print(each.workflow_name, each.version or "without a version", each.open_instances)
        await third.send_event(type="price.asked")
        print(await third.handle("p-1").result(timeout=30), await third.handle("p-2").result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
