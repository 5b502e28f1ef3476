"""The collector of cycles in a worker: seldom by the number of objects, in time by the memory they hold."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, sys
from romancy_stream.cli import collector

BYTES, COUNT, WATCHED = 32 * 2**20, 60, sys.argv[1] == "watched"
collector.LOOK_EVERY_S = 0.001
looks = []

def counted(most_bytes=collector._most_bytes):
    looks.append(None)
    return most_bytes()

class Left:
    def __init__(self):
        self.itself, self.held = self, b"x" * BYTES

async def leave():
    for _ in range(COUNT):
        Left()
        before = len(looks)
        while WATCHED and len(looks) == before:
            await asyncio.sleep(0)

collector._most_bytes = counted
collector.calm_collector()
with asyncio.Runner() as runner:
    if WATCHED:
        collector.watch_memory(runner.get_loop())
    runner.run(leave())
print(collector._most_bytes() // BYTES)
"""


def most_held(how: str) -> int:
    """Of sixty cycles."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


def test_cycles_that_hold_much_are_collected_when_memory_grows() -> None:
    assert most_held("watched") < 20


def test_without_a_look_they_stay() -> None:
    assert most_held("unwatched") >= 60
