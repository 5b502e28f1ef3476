"""What attempts came to, on its way to the engine: events first, then the result, and at the end what nobody has to do
again. Results have nothing to do with each other, so none waits for another's answer. Knows outcomes, no activities.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.tasks import Report, Task
from romancy_stream.errors import BrokerUnavailableError, PayloadTooLargeError
from romancy_stream.runtime.attempt import Outcome
from romancy_stream.runtime.clock import DatabaseClock
from romancy_stream.runtime.worker_messages import Messages
from romancy_stream.runtime.worker_sending import Sender
from romancy_stream.runtime.worker_watch import Running
from romancy_stream.wire.event import ACTIVITY_FAILED

log = logging.getLogger(__name__)

Refusals = Sequence[str | None]


class Reports:
    """`eager` says whether the engine of this process has a report. `start` runs a coroutine that ends by itself, or is
    cancelled when the worker leaves. `ended` is called once for each: when the broker has everything or will never have
    it; or with None, when that was cut off."""

    def __init__(
        self,
        sender: Sender,
        messages: Messages,
        clock: DatabaseClock,
        eager: Callable[[Task, Report], bool],
        start: Callable[[Coroutine[Any, Any, None]], None],
        ended: Callable[[Running, Outcome | None], None],
    ) -> None:
        self._sender = sender
        self._messages = messages
        self._clock = clock
        self._eager = eager
        self._start = start
        self._ended = ended

    async def report(self, running: Running, outcome: Outcome) -> None:
        """May return before `ended` is called."""
        refusals = await self._sender.deliver(outcome.events) if outcome.events else ()
        if outcome.report is None:
            self._finish(running, outcome, refusals)
        elif self._eager(running.task, outcome.report):
            self._finish(running, outcome, (*refusals, None))
        else:
            message = self._messages.to_engine(outcome.report)
            await self._sender.post(message, partial(self._answered, running, outcome, refusals))

    def _answered(self, running: Running, outcome: Outcome, refusals: Refusals, answer: asyncio.Future[int]) -> None:
        if answer.cancelled():
            self._ended(running, None)
        elif (error := answer.exception()) is not None:
            self._start(self._report_late(running, outcome, refusals, error))
        else:
            self._finish(running, outcome, (*refusals, None))

    async def _report_late(self, running: Running, outcome: Outcome, refusals: Refusals, error: BaseException) -> None:
        assert outcome.report is not None
        refusal: str | None = str(error)
        try:
            if isinstance(error, BrokerUnavailableError):
                [refusal] = await self._sender.deliver([self._messages.to_engine(outcome.report)], failed=error)
            else:
                self._sender.refused += 1
            if refusal is not None:
                await self.refused(outcome.report, refusal)
        except asyncio.CancelledError:
            self._ended(running, None)
        else:
            self._finish(running, outcome, (*refusals, refusal))

    async def refused(self, report: Report, refusal: str) -> None:
        """The workflow must hear something. A failure for good makes the engine look at what is recorded: a result
        that a transaction holds is used after all."""
        task = report.task
        if report.type == ACTIVITY_FAILED or task is None:
            return
        error = encode_error(
            PayloadTooLargeError(f"the broker refuses the result of {task}: {refusal}"), retryable=False
        )
        failure = self._messages.failed(task, error, 0, self._clock.now_us())
        await self._sender.deliver([self._messages.to_engine(failure)])

    def _finish(self, running: Running, outcome: Outcome, refusals: Refusals) -> None:
        for index, refusal in enumerate(refusals):
            if refusal is not None:
                row = outcome.rows[index] if outcome.rows else None
                log.error(
                    "%s: the broker refuses message %d for good (outbox row %s): %s", running.task, index, row, refusal
                )
        if outcome.rows:
            self._sender.sent([row for row, refusal in zip(outcome.rows, refusals, strict=False) if refusal is None])
        self._ended(running, outcome)
