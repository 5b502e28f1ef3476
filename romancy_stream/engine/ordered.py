"""Makes `asyncio.as_completed` start coroutines in argument order inside workflows. The standard one collects them
in a set of native coroutines, which iterates in order of memory addresses: two runs of one workflow would schedule
their activities in different orders. Workflow modules import the function by name, so its code is what is
replaced; on every other loop the original runs, untouched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import FunctionType
from typing import Any, cast

from romancy_stream.engine.loop import WorkflowLoop

_MARK = "_romancy_as_completed"


def install() -> None:
    """Idempotent."""
    replaced = cast(FunctionType, asyncio.as_completed)
    if _MARK in replaced.__globals__:
        return
    original = FunctionType(replaced.__code__, replaced.__globals__, "as_completed", replaced.__defaults__)
    original.__kwdefaults__ = replaced.__kwdefaults__

    def started_in_order(fs: Any, timeout: float | None) -> Any:
        loop = asyncio._get_running_loop()
        if isinstance(loop, WorkflowLoop) and isinstance(fs, Iterable) and not asyncio.iscoroutine(fs):
            # Futures in argument order; the set that asyncio then makes of them hashes by sequence.
            fs = [asyncio.ensure_future(f, loop=loop) for f in dict.fromkeys(fs)]
        return original(fs, timeout=timeout)

    replaced.__globals__[_MARK] = started_in_order
    replaced.__code__ = _ordered.__code__


def _ordered(fs: Any, *, timeout: float | None = None) -> Any:
    return _romancy_as_completed(fs, timeout)  # type: ignore[name-defined]  # noqa: F821 - runs in asyncio.tasks
