"""Runs of an instance: the next one by recurring, another one after the end, from a point of its history, or none at
all any more. Part of the core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from romancy_stream.engine.batch import Batch
from romancy_stream.engine.inputs import Input, Outlived

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore


def prefixes(core: EngineCore, inputs: Sequence[Input]) -> Iterable[tuple[str, int]]:
    return ()


def outlived(core: EngineCore, batch: Batch, each: Outlived) -> None:
    raise NotImplementedError
