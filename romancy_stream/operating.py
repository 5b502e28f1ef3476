"""How clients and handles operate on instances: go back in one (`retry`, `reset`), go another way from its past
(`fork`), remove it; and the same, or cancelling, for all that a filter finds. Each is a command to the engine, and its
answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

import orjson

from romancy_stream.cancelling import Cancelling
from romancy_stream.engine.answers import accepted, refusal
from romancy_stream.engine.commit import FAILED
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.intake import digest
from romancy_stream.engine.operations import named_point, reset_point, retry_point
from romancy_stream.errors import (
    InstanceExistsError,
    InstanceNotFoundError,
    InvalidResetPointError,
    NotDeletableError,
    RomancyError,
)
from romancy_stream.ids import uuid7_hex
from romancy_stream.instances import microseconds_or_none
from romancy_stream.options import checked_instance_id
from romancy_stream.registry import Registry
from romancy_stream.store.port import InstanceQuery
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.partition import partition_for

if TYPE_CHECKING:
    from romancy_stream.handle import Handle

OPERATION_TIMEOUT_S: Final = 30.0
"""How long the engine's answer is waited for, where nobody says otherwise."""
PAGE_INSTANCES: Final = 100
"""Of a bulk form: read at once. An instance's input may be large, and is read with it."""
AT_ONCE: Final = 20
"""Of a bulk form: commands that have no answer yet. An engine takes many into one commit; more would only make it
harder to stop."""
REFUSALS_LIMIT: Final = 1_000
"""Of a bulk form: kept for the caller. Where more refuse, the filter was wrong."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """Of an operation on all instances that a filter found. `done`: how many it was done to; `refused_count`: how many
    refused; `refused`: why, by instance id, of the first REFUSALS_LIMIT. Who was gone in the meantime counts as
    neither."""

    done: int
    refused_count: int
    refused: Mapping[str, RomancyError]


class InstanceFilters(TypedDict, total=False):
    """Of a bulk form, as `list_instances` has them; None, or not there: any."""

    workflow_name: str | None
    status: str | None
    instance_id: str | None
    started_after: datetime | None
    started_before: datetime | None
    parent_id: str | None


class Operating(Cancelling):
    """A part of every client. What each method raises beside its own errors: TimeoutError where no engine has answered
    within `timeout` seconds, and then it may still happen."""

    registry: Registry

    # -- one instance --------------------------------------------------------------------------------------------
    async def retry(self, instance_id: str, *, timeout: float | None = OPERATION_TIMEOUT_S) -> int:
        """Runs a failed instance again from where it was last well: the activity or child that failed is tried anew,
        what was done before stays done. Returns the number of the new run. NotRetryableError: it has not failed, or
        what it had done was undone; InstanceNotFoundError."""
        command = self._command_to(w.RETRY, instance_id)
        return int((await self._operate(command, timeout))["run"])

    async def reset(
        self, instance_id: str, *, to_event: int | None = None, timeout: float | None = OPERATION_TIMEOUT_S
    ) -> int:
        """Runs an instance, whatever its status, again from event `to_event` of its current run (as `history` numbers
        them), or from the last thing that happened to it. The code gets the last input at or before that event once
        more; what came behind it is done anew. Returns the number of the new run. InvalidResetPointError,
        InstanceNotFoundError."""
        command = self._command_to(w.RESET, instance_id, extensions=_at("to_event", to_event))
        return int((await self._operate(command, timeout))["run"])

    async def fork(
        self,
        instance_id: str,
        *,
        at: int | None = None,
        new_id: str | None = None,
        run: int | None = None,
        timeout: float | None = OPERATION_TIMEOUT_S,
    ) -> Handle[Any]:
        """Another instance, which begins with the history of this one up to event `at`, and goes on by itself. `run`:
        that of an earlier run. InvalidResetPointError, InstanceNotFoundError; InstanceExistsError: `new_id` is
        taken."""
        history = await self._store.history(checked_instance_id(instance_id), run)
        if not history:
            which = "" if run is None else f" with a run {run}"
            raise InstanceNotFoundError(f"no instance {instance_id!r}{which}")
        begun = history[0]
        extensions = {w.X_INSTANCE: instance_id, w.X_RUN: str(begun.run), **_at("at", at)}
        to = f"{begun.attrs['workflow']}-{uuid7_hex()}" if new_id is None else new_id
        await self._operate(self._command_to(w.FORK, to, extensions=extensions), timeout)
        return self.handle(to, self.registry.workflows.get(begun.attrs["workflow"]))

    async def delete(self, instance_id: str, *, timeout: float | None = OPERATION_TIMEOUT_S) -> None:
        """Removes a finished instance with everything that is known of it. The start that began it still counts as
        known for a while. NotDeletableError: it has not finished; InstanceNotFoundError."""
        await self._operate(self._command_to(w.DELETE, instance_id), timeout)

    # -- all that a filter finds ---------------------------------------------------------------------------------
    async def cancel_all(
        self,
        reason: str | None = None,
        *,
        at_once: int = AT_ONCE,
        timeout: float | None = OPERATION_TIMEOUT_S,
        **filters: Unpack[InstanceFilters],
    ) -> BulkResult:
        """Cancels all instances that have not finished and that the filters find; they are those of `list_instances`.
        Newest first, `at_once` at a time; may be repeated. Those that start meanwhile are left alone."""
        query = _query(finished=False, **filters)
        return await self._to_all(query, lambda each: self.cancel(each, reason, timeout=timeout), at_once)

    async def retry_all(
        self,
        *,
        at_once: int = AT_ONCE,
        timeout: float | None = OPERATION_TIMEOUT_S,
        **filters: Unpack[InstanceFilters],
    ) -> BulkResult:
        """As `retry`, for all instances that the filters find, of those that have failed unless `status` says
        otherwise."""
        filters.setdefault("status", FAILED)
        query = _query(finished=True, **filters)
        return await self._to_all(query, lambda each: self.retry(each, timeout=timeout), at_once)

    async def delete_all(
        self,
        *,
        finished_before: datetime | None = None,
        at_once: int = AT_ONCE,
        timeout: float | None = OPERATION_TIMEOUT_S,
        **filters: Unpack[InstanceFilters],
    ) -> BulkResult:
        """As `delete`, for all finished instances that the filters find."""
        query = replace(_query(finished=True, **filters), finished_before_us=microseconds_or_none(finished_before))
        return await self._to_all(query, lambda each: self.delete(each, timeout=timeout), at_once)

    async def _to_all(self, query: InstanceQuery, do: Callable[[str], Awaitable[Any]], at_once: int) -> BulkResult:
        """Pages are cut by the time of the start, so what happens to instances meanwhile moves none of them."""
        if not isinstance(at_once, int) or at_once < 1:
            raise ValueError(f"at_once must be 1 or more, not {at_once!r}")
        done, count, refused = 0, 0, dict[str, RomancyError]()
        while True:
            page = await self._store.list_instances(query)
            for first in range(0, len(page.rows), at_once):
                ids = [row.instance_id for row in page.rows[first : first + at_once]]
                for instance_id, error in zip(ids, await _together(do, ids), strict=True):
                    if error is None:
                        done += 1
                    elif not isinstance(error, InstanceNotFoundError):
                        count += 1
                        if len(refused) < REFUSALS_LIMIT:
                            refused[instance_id] = error
            if page.next_page_token is None:
                return BulkResult(done, count, refused)
            query = replace(query, page_token=page.next_page_token)

    # -- commands ------------------------------------------------------------------------------------------------
    async def _operate(self, command: WireEvent, timeout_s: float | None) -> dict[str, Any]:
        async def look() -> bytes | None:
            return await self._known_answer(command)

        told: dict[str, Any] = orjson.loads(await self._ask(command, look, timeout_s))
        return told

    async def _known_answer(self, command: WireEvent) -> bytes | None:
        """What the tables say, where the answer was not heard: the engine takes a command in together with what it does
        about it."""
        instance_id = command.subject or ""
        topics = await self._broker.topics()
        part = partition_for(instance_id.encode(), topics[self.topics.commands].partitions)
        key = (part, digest("command", command))
        if not await self._store.taken_in([key]):
            return None
        known = await self._store.known([instance_id])
        row = known.instances.get(instance_id)
        if command.type == w.DELETE:
            if row is not None:
                return refusal(NotDeletableError(f"instance {instance_id} is {row.status}"))
            gone = instance_id in known.tombstones
            return accepted() if gone else refusal(InstanceNotFoundError(f"no instance {instance_id!r}"))
        for run in range(row.run if row is not None else 0, 0, -1):
            history = await self._store.history(instance_id, run)
            if history and history[0].attrs.get("follows", {}).get("event_id") == command.id:
                return accepted(run=run)
        return refusal(await self._why_not(command))

    async def _why_not(self, command: WireEvent) -> RomancyError:
        """It was refused: the reason as it is now."""
        if command.type == w.FORK and await self._store.get_instance(command.subject or "") is not None:
            return InstanceExistsError(f"instance {command.subject} exists")
        instance_id = command.extensions.get(w.X_INSTANCE, command.subject or "")
        run = command.extensions.get(w.X_RUN)
        history = await self._store.history(instance_id, None if run is None else int(run))
        if not history:
            return InstanceNotFoundError(f"no instance {instance_id!r}")
        return _refused_by(history, command)

    # -- of the client -------------------------------------------------------------------------------------------
    def handle(self, instance_id: str, workflow: Any = None) -> Handle[Any]:
        raise NotImplementedError


def _refused_by(history: Sequence[HistoryEvent], command: WireEvent) -> RomancyError:
    try:
        if command.type == w.RETRY:
            retry_point(history)
        else:
            reset_point(history, named_point(command, history))
    except RomancyError as error:
        return error
    return RomancyError(f"{command.type} was refused, and would not be now: instance {command.subject} has changed")


def _at(name: str, seq: int | None) -> dict[str, str]:
    if seq is None:
        return {}
    if not isinstance(seq, int) or isinstance(seq, bool):
        raise TypeError(f"{name} must be the number of an event, not {seq!r}")
    if seq < 1:
        raise InvalidResetPointError(f"{name} must be 1 or more, not {seq}: events are counted from 1")
    return {w.X_SEQUENCE: str(seq)}


def _query(
    *,
    finished: bool,
    workflow_name: str | None = None,
    status: str | None = None,
    instance_id: str | None = None,
    started_after: datetime | None = None,
    started_before: datetime | None = None,
    parent_id: str | None = None,
) -> InstanceQuery:
    return InstanceQuery(
        workflow_name,
        status,
        instance_id,
        microseconds_or_none(started_after),
        microseconds_or_none(started_before),
        parent_id=parent_id,
        finished=finished,
        limit=PAGE_INSTANCES,
    )


async def _together(do: Callable[[str], Awaitable[Any]], ids: Sequence[str]) -> list[RomancyError | None]:
    """What became of each. Anything but a refusal ends them all."""

    async def one(instance_id: str) -> RomancyError | None:
        try:
            await do(instance_id)
        except RomancyError as error:
            return error
        return None

    tasks = [asyncio.create_task(one(instance_id)) for instance_id in ids]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Operable:
    """A part of every handle."""

    instance_id: str
    _client: Operating

    async def retry(self, *, timeout: float | None = OPERATION_TIMEOUT_S) -> int:
        """As `client.retry`; `result()` then waits for the new run."""
        return await self._client.retry(self.instance_id, timeout=timeout)

    async def reset(self, *, to_event: int | None = None, timeout: float | None = OPERATION_TIMEOUT_S) -> int:
        """As `client.reset`; `result()` then waits for the new run."""
        return await self._client.reset(self.instance_id, to_event=to_event, timeout=timeout)

    async def fork(
        self,
        *,
        at: int | None = None,
        new_id: str | None = None,
        run: int | None = None,
        timeout: float | None = OPERATION_TIMEOUT_S,
    ) -> Handle[Any]:
        """As `client.fork`."""
        return await self._client.fork(self.instance_id, at=at, new_id=new_id, run=run, timeout=timeout)

    async def delete(self, *, timeout: float | None = OPERATION_TIMEOUT_S) -> None:
        """As `client.delete`."""
        await self._client.delete(self.instance_id, timeout=timeout)
