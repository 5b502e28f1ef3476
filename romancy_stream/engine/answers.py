"""What the sender of a command hears of it: `romancy.command.answered` on the events topic, for anybody who knows the
command's id. Part of the core.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

import orjson

from romancy_stream.engine.batch import Batch
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.inputs import Received
from romancy_stream.errors import RomancyError
from romancy_stream.wire.event import WireEvent

DONE: Final = b'{"ok":true'
"""How the answer to a command begins that was not refused."""


def accepted(**details: Any) -> bytes:
    """Begins with DONE."""
    return orjson.dumps({"ok": True, **details})


def done(batch: Batch, part: int, command: WireEvent, **details: Any) -> None:
    batch.answer_command(part, command, _key(command), accepted(**details))


def refused(batch: Batch, part: int, command: WireEvent, error: BaseException) -> None:
    batch.answer_command(part, command, _key(command), refusal(error))


def refusal(error: BaseException) -> bytes:
    """`reason` is for those who do not know our classes."""
    reason = getattr(error, "code", "error")
    return b'{"ok":false,"reason":"%s","error":%s}' % (reason.encode(), encode_error(error, retryable=False))


def _key(command: WireEvent) -> str:
    return command.subject or command.id


class Answer:
    """Around what a command does: an error of ours inside becomes the answer, else it is done, with `details`."""

    def __init__(self, batch: Batch, received: Received, command: WireEvent) -> None:
        self.details: dict[str, Any] = {}
        self._batch = batch
        self._part = received.record.partition
        self._command = command

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            done(self._batch, self._part, self._command, **self.details)
            return False
        if isinstance(error, RomancyError):
            refused(self._batch, self._part, self._command, error)
            return True
        return False
