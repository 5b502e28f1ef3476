"""Code that changes while its instances are under way, on every broker and every database: what disagrees is halted and
nothing of it is lost, and a patch tells old runs from new ones."""

from __future__ import annotations

from romancy_stream import App, WorkflowContext
from tests.conformance.conftest import MakeApp
from tests.support import eventually

PATIENCE_S = 120


def deployed(make_app: MakeApp, number: int) -> App:
    app = make_app()

    @app.activity
    async def step(what: str) -> str:
        return what

    @app.workflow
    async def order(ctx: WorkflowContext) -> list[str]:
        done = [await step("packed")]
        if number == 2 or (number == 3 and ctx.patched("inspection")):
            done.append(await step("inspected"))
        await ctx.wait_event("truck.came")
        return [*done, await step("shipped")]

    return app


async def until(app: App, instance_id: str, *, parked: bool) -> None:
    async def reached() -> bool:
        instance = await app.get_instance(instance_id)
        if instance is None:
            return False
        return instance.parked is not None if parked else instance.status == "waiting_for_event"

    await eventually(reached, deadline_s=PATIENCE_S)


async def test_a_mistake_halts_and_a_patch_goes_on(make_app: MakeApp) -> None:
    first, second, third = (deployed(make_app, number) for number in (1, 2, 3))
    async with first:
        await first.start_by_name("order", instance_id="old")
        await until(first, "old", parked=False)
        before = await first.history("old")
    async with second:
        await second.send_event(type="truck.came", subject="old")  # is kept until the code agrees
        await until(second, "old", parked=True)
        instance = await second.handle("old").get()
        assert "history says wait.started wait:1" in str(instance.parked)
        assert (await second.history("old"))[: len(before)] == before
    async with third:
        assert await third.handle("old").result(timeout=PATIENCE_S) == ["packed", "shipped"]
        await third.start_by_name("order", instance_id="new")
        await third.send_event(type="truck.came", subject="new")
        assert await third.handle("new").result(timeout=PATIENCE_S) == ["packed", "inspected", "shipped"]
        marks = [entry.ref for entry in await third.history("new") if entry.kind == "patch.marked"]
        assert marks == ["inspection"]
