"""One process with the embedded log and SQLite, killed again and again at random moments: what a laptop and a power cut
do to the quick start."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.chaos.program import plan
from tests.chaos.scene import scene
from tests.conftest import SEED_VARIABLE

pytestmark = pytest.mark.timeout(600)

KILLS = 5
LIFE_S = (0.1, 1.5)
"""Of a process, from its first sign of life (the file is locked, partitions are taken over) to its end: the work takes
about two seconds."""


@pytest.mark.parametrize("seed", [int(os.environ[SEED_VARIABLE])])
async def test_killed_again_and_again(seed: int, namespace: str, tmp_path: Path) -> None:
    chance = random.Random(seed)  # in the name of the test
    work = list(plan(50))
    async with scene(
        namespace, f"embedded://{tmp_path / 'log'}", f"sqlite:///{tmp_path / 'state.db'}", tmp_path
    ) as stage:
        for number in range(KILLS):
            process = stage.processes.alone(f"life-{number}", len(work))
            await stage.owns(process, 4)
            await asyncio.wait([asyncio.create_task(process.ended())], timeout=chance.uniform(*LIFE_S))
            if process.alive:
                await process.kill()
        last = stage.processes.alone("last", len(work))
        assert await last.ended(60) == 0
        await stage.finish(work, tidy=False)
