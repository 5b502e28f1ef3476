"""Python itself in a process that is a worker and little else.

The collector of cycles: a live workflow is some 50 objects and a batch is 150,000, which the collector's usual settings
walk again and again, for a third of the engine's time, to find nothing: what the engine drops needs no collector. What
the user's code and libraries leave in cycles does, and may hold much memory with few objects: so the collector comes
seldom by their number, and at once when memory grows.

Turns: a thread that wants the interpreter waits for one that computes, and the event loop and the databases' threads
want it at every hop. Beside one `def` activity that computes, a workflow on SQLite took 266 ms with Python's own 5 ms
of patience, and takes 48 ms with a tenth of it (`benchmarks.shapes`).
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import sys
from pathlib import Path
from typing import Final

THRESHOLDS: Final = (1_000_000, 10, 10)
"""Of objects, per generation: those of a burst of some thousand workflows have gone before. Some 200 MB."""
BLIND_THRESHOLDS: Final = (200_000, 10, 10)
"""Where memory cannot be watched: not on Linux."""
GROWTH: Final = 1.25
GROWTH_BYTES: Final = 64 * 2**20
"""By both, and the collector comes; a process that needs more for good is not walked through for every bit of it."""
LOOK_EVERY_S: Final = 1.0
SWITCH_INTERVAL_S: Final = 0.0005

_STATM: Final = Path("/proc/self/statm")


def set_up_interpreter() -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()  # modules and classes: they stay
    gc.set_threshold(*(THRESHOLDS if _STATM.exists() else BLIND_THRESHOLDS))


def watch_memory(loop: asyncio.AbstractEventLoop) -> None:
    """For as long as the loop runs."""
    if _STATM.exists():
        _look_later(loop, _resident_bytes())


def _look_later(loop: asyncio.AbstractEventLoop, known_bytes: int) -> None:
    def look() -> None:
        now_bytes = _resident_bytes()
        if now_bytes > max(known_bytes * GROWTH, known_bytes + GROWTH_BYTES):
            gc.collect()
            _look_later(loop, _resident_bytes())
        else:
            _look_later(loop, min(known_bytes, now_bytes))

    loop.call_later(LOOK_EVERY_S, look)


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE
