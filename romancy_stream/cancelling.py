"""How clients and handles cancel instances: a command to the engine, and its answer."""

from __future__ import annotations

from typing import Final

import orjson

from romancy_stream.commanding import Commanding
from romancy_stream.engine import history as h
from romancy_stream.engine.answers import accepted, refusal
from romancy_stream.engine.commit import CANCELLED
from romancy_stream.errors import InstanceNotCancellableError
from romancy_stream.store.port import Store
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent

CANCEL_ANSWER_TIMEOUT_S: Final = 30.0
"""How long the engine's answer is waited for, where nobody says otherwise."""


class Cancelling(Commanding):
    """A part of every client."""

    async def cancel(
        self, instance_id: str, reason: str | None = None, *, timeout: float | None = CANCEL_ANSWER_TIMEOUT_S
    ) -> None:
        """Asks an instance to end, and returns when its code has been told; `handle.result()` waits for the end. The
        code sees asyncio.CancelledError and may clean up, then what it completed is undone. Nothing happens where it is
        cancelled already. InstanceNotFoundError; InstanceNotCancellableError: it has finished; TimeoutError: no engine
        has answered within `timeout` seconds, and it may still happen."""
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"reason must be a text, not {reason!r}")
        command = self._command_to(w.CANCEL, instance_id, orjson.dumps({"reason": reason}))

        async def look() -> bytes | None:
            return await _known_answer(self._store, command)

        await self._ask(command, look, timeout)


async def _known_answer(store: Store, command: WireEvent) -> bytes | None:
    """What the tables say of a request, where its answer was not heard. Of an instance that is not there they cannot
    say whether the engine has looked for it yet."""
    assert command.subject is not None
    row = await store.get_instance(command.subject)
    if row is None:
        return None
    if row.status == CANCELLED:
        return accepted()
    if row.finished_us is not None:
        return refusal(InstanceNotCancellableError(f"instance {command.subject} has finished: it is {row.status}"))
    asked = any(event.kind == h.WORKFLOW_CANCEL_REQUESTED for event in await store.history(command.subject))
    return accepted() if asked else None


class Cancellable:
    """A part of every handle."""

    instance_id: str
    _client: Cancelling

    async def cancel(self, reason: str | None = None, *, timeout: float | None = CANCEL_ANSWER_TIMEOUT_S) -> None:
        """As `client.cancel`."""
        await self._client.cancel(self.instance_id, reason, timeout=timeout)
