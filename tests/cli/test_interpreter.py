"""The collector of cycles in a worker: seldom by the number of objects, in time by the memory they hold; and threads
that take turns."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, sys
from romancy_stream.cli import interpreter

BYTES, COUNT, WATCHED = 16 * 2**20, 60, sys.argv[1] == "watched"
interpreter.LOOK_EVERY_S = 0.001
looks = []

def counted(resident_bytes=interpreter._resident_bytes):
    looks.append(None)
    return resident_bytes()

class Left:
    def __init__(self):
        self.itself, self.held = self, b"x" * BYTES

async def leave():
    before_that = bytearray(b"x" * BYTES * COUNT)  # a peak that is over
    del before_that
    for _ in range(COUNT):
        Left()
        before = len(looks)
        while WATCHED and len(looks) == before:
            await asyncio.sleep(0)

interpreter._resident_bytes = counted
interpreter.set_up_interpreter()
with asyncio.Runner() as runner:
    if WATCHED:
        interpreter.watch_memory(runner.get_loop())
    runner.run(leave())
print(interpreter._resident_bytes() // BYTES)
"""


def held(how: str) -> int:
    """In the end, of sixty."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


def test_cycles_that_hold_much_are_collected_when_memory_grows() -> None:
    assert held("watched") < 20


def test_without_a_look_they_stay() -> None:
    assert held("unwatched") >= 60


def test_threads_take_shorter_turns_than_pythons_own() -> None:
    set_up = "from romancy_stream.cli.interpreter import set_up_interpreter; set_up_interpreter()"
    program = f"import sys; {set_up}; print(sys.getswitchinterval())"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert float(answer) <= sys.getswitchinterval() / 10
