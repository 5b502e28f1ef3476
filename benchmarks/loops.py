"""The event loop of every process here: the one that `romancy worker` takes by itself."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.version_info >= (3, 14) or importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
