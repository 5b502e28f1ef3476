"""A workflow step that takes its process down takes it down a few times, not for ever: then the message is set
aside, and everybody else's workflows go on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from romancy_stream import App, StartRefusedError, WorkflowContext
from tests.support import eventually

DEADLY = "deadly"


def program(folder: Path) -> App:
    app = App(
        "deadly", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'state.db'}", partitions=1
    )

    @app.workflow
    async def flow(ctx: WorkflowContext, what: str) -> str:
        if what == DEADLY:
            os._exit(7)  # as a crash of the interpreter would
        return what

    @app.workflow
    async def sleeper(ctx: WorkflowContext) -> str:
        await ctx.sleep(0.1)
        os._exit(7)

    @app.activity
    async def step(number: int) -> int:
        return number

    @app.workflow
    async def racer(ctx: WorkflowContext) -> None:
        await asyncio.wait([asyncio.ensure_future(step(n)) for n in range(2)], return_when=asyncio.FIRST_COMPLETED)
        os._exit(7)

    return app


@pytest.mark.parametrize("deadly_first", [True, False])
async def test_a_deadly_start_is_set_aside(deadly_first: bool, tmp_path: Path) -> None:
    app = program(tmp_path)
    async with app.running(roles=["worker"]):  # no engine: commands wait in the log
        names = [DEADLY, "a", "b"] if deadly_first else ["a", DEADLY, "b"]
        for name in names:
            await app.start_by_name("flow", name, instance_id=name)
    await _until_it_survives(tmp_path, 3)
    async with app.client() as client:
        [letter] = await client.dead_letters()
        assert letter.reason == "kills_its_owner"
        assert await client.get_instance(DEADLY) is None
        with pytest.raises(StartRefusedError, match="kills_its_owner"):
            await client.handle(DEADLY).result(timeout=120)
        for name in ("a", "b"):
            instance = await client.get_instance(name)
            assert instance is not None
            assert instance.output == name


async def test_a_deadly_timer_parks_its_instance(tmp_path: Path) -> None:
    app = program(tmp_path)
    async with app.running(roles=["worker"]):
        await app.start_by_name("sleeper", None, instance_id="s")
    await _until_it_survives(tmp_path, 1)
    async with app.client() as client:
        instance = await client.get_instance("s")
        assert instance is not None
        assert "died" in (instance.parked or "")
        assert not await client.dead_letters()


async def test_who_was_passed_by_is_not_forgotten_over_the_next(tmp_path: Path) -> None:
    """Of the results of each, one is set aside, which parks it; the other one is in its history then, and it is deadly
    to go on with it, as every owner tries. They would take turns in being suspected, for ever."""
    app = program(tmp_path)
    async with app.running(roles=["worker"]):
        for name in ("one", "two"):
            await app.start_by_name("racer", None, instance_id=name)
    await _until_it_survives(tmp_path, 2, owners=20)
    async with app.client() as client:
        for name in ("one", "two"):
            instance = await client.get_instance(name)
            assert instance is not None
            assert "died" in (instance.parked or "")


async def _until_it_survives(folder: Path, starts: int, owners: int = 8) -> None:
    """Owners in turn, until one does not die of it."""
    command = [sys.executable, "-m", "tests.runtime.test_suspects", str(folder), str(starts)]
    for _ in range(owners):
        owner = await asyncio.to_thread(subprocess.run, command, check=False)
        if owner.returncode == 0:
            return
        assert owner.returncode == 7
    pytest.fail("every owner died")


async def _own(folder: Path, starts: int) -> None:
    """One owner's life: until there is nothing left that could kill it."""
    app = program(folder)
    async with app:

        async def settled() -> bool:
            letters = [each for each in await app.dead_letters() if each.dlq_id.startswith(app.topics.commands)]
            page = await app.list_instances()
            done = all(each.status == "completed" or each.parked for each in page.instances)
            return done and len(page.instances) + len(letters) == starts

        await eventually(settled, deadline_s=120)


if __name__ == "__main__":
    asyncio.run(_own(Path(sys.argv[1]), int(sys.argv[2])))
