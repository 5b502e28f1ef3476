"""Drives one workflow definition on the real core, without engine, broker or database: inputs in, commands out."""

from __future__ import annotations

from typing import Any

from romancy_stream import RetryPolicy, Workflow
from romancy_stream.engine import history as h
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.instance import Command, LiveInstance
from romancy_stream.engine.loop import stepping_aside

START_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
_live: list[LiveInstance] = []
"""Made since `evict_driven`."""


class Driven:
    """`commands` is what the last input was answered with."""

    def __init__(self, workflow: Workflow[Any, Any], payload: bytes | None = None) -> None:
        self.live = LiveInstance(workflow, "i-1", 1, RetryPolicy.default())
        _live.append(self.live)
        self.seq = 0
        self.commands = self.deliver(h.WORKFLOW_STARTED, None, payload)

    def deliver(self, kind: str, ref: str | None, payload: bytes | None, at_us: int = START_US) -> list[Command]:
        self.seq += 1
        with stepping_aside():
            self.commands = self.live.deliver(HistoryEvent("i-1", 1, self.seq, at_us, kind, ref, payload=payload))
        return self.commands

    def complete(self, ref: str, payload: bytes) -> list[Command]:
        return self.deliver(h.ACTIVITY_COMPLETED, ref, payload)

    def fail(self, ref: str, error: BaseException | bytes) -> list[Command]:
        raw = error if isinstance(error, bytes) else encode_error(error, retryable=False)
        return self.deliver(h.ACTIVITY_FAILED, ref, raw)

    @property
    def output(self) -> bytes | None:
        (command,) = self.commands
        assert command.kind == h.WORKFLOW_COMPLETED, (command, command.payload)
        return command.payload


def evict_driven() -> None:
    """After each test, see `conftest`."""
    with stepping_aside():
        while _live:
            _live.pop().evict()
