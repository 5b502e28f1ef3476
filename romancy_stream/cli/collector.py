"""Python's collector of cycles in a process that is a worker and little else. A live workflow is some 50 objects and a
batch is 150,000, which the collector's usual settings walk again and again, for a third of the engine's time, to find
nothing: what the engine drops needs no collector. What the user's code and libraries leave in cycles does, and may
hold much memory with few objects: so the collector comes seldom by their number, and at once when memory grows."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Final

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

THRESHOLDS: Final = (1_000_000, 10, 10)
"""Of objects, per generation: those of a burst of some thousand workflows have gone before. Some 200 MB."""
BLIND_THRESHOLDS: Final = (200_000, 10, 10)
"""Where memory cannot be watched."""
GROWTH: Final = 1.25
GROWTH_BYTES: Final = 64 * 2**20
"""By both, and the collector comes; a process that needs more for good is not walked through for every bit of it."""
LOOK_EVERY_S: Final = 1.0


def calm_collector() -> None:
    gc.collect()
    gc.freeze()  # modules and classes: they stay
    gc.set_threshold(*(BLIND_THRESHOLDS if resource is None else THRESHOLDS))


def watch_memory(loop: asyncio.AbstractEventLoop) -> None:
    """For as long as the loop runs."""
    if resource is not None:
        _look_later(loop, _most_bytes())


def _look_later(loop: asyncio.AbstractEventLoop, known_bytes: int) -> None:
    def look() -> None:
        most = _most_bytes()
        if most < max(known_bytes * GROWTH, known_bytes + GROWTH_BYTES):
            _look_later(loop, known_bytes)
        else:
            gc.collect()
            _look_later(loop, most)

    loop.call_later(LOOK_EVERY_S, look)


def _most_bytes() -> int:
    """What this process has had at most."""
    most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
