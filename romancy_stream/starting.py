"""How clients start instances: one, one whose workflow is only known by name, or many at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, overload

from romancy_stream.commanding import Commanding
from romancy_stream.engine.answers import accepted
from romancy_stream.engine.payload import MAX_ENCODED_BYTES, encode_data
from romancy_stream.errors import InstanceExistsError
from romancy_stream.handle import Handle, rejection
from romancy_stream.ids import uuid7_hex
from romancy_stream.options import OnConflict, Reuse, StartOptions
from romancy_stream.wire import event as w
from romancy_stream.wire.codec import encode, new_event_time
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import OutRecord
from romancy_stream.workflow import I, P, R, Startable, Workflow

START_ANSWER_TIMEOUT_S: Final = 30.0
"""How long `on_conflict="fail"` and `reuse=` wait for the engine to say what became of the start."""
SENT_AT_ONCE: Final = 10_000
"""Starts of `start_many` whose acknowledgements are waited for together: some 20 MB of futures and records."""


class Starting(Commanding):
    """A part of every client."""

    def _new_id(self, workflow_name: str) -> str:
        return f"{workflow_name}-{uuid7_hex()}"

    @overload
    async def start(
        self,
        workflow: Startable[[], R],
        /,
        *,
        instance_id: str | None = None,
        on_conflict: OnConflict | None = None,
        reuse: Reuse | None = None,
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> Handle[R]: ...
    @overload
    async def start(
        self,
        workflow: Startable[[I], R],
        input: I,
        /,
        *,
        instance_id: str | None = None,
        on_conflict: OnConflict | None = None,
        reuse: Reuse | None = None,
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> Handle[R]: ...
    @overload
    async def start(self, workflow: Startable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    async def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Returns when the command is durable in the broker. The same `instance_id` again is the same instance;
        with `on_conflict="fail"` it raises InstanceExistsError instead. `reuse` says what to do where the instance of
        that id has finished: begin another run ("allow_failed": unless it has completed; "allow_finished"), or raise
        InstanceExistsError ("reject_duplicate"). With either option the engine's answer is waited for: TimeoutError.
        `start_delay` (seconds, or a timedelta) or `start_at` (an aware datetime): the instance is there at once, its
        code begins then. PayloadError, TypeError for a wrong call, ValueError for a wrong option."""
        if not isinstance(workflow, Workflow | type):
            raise TypeError(f"start takes a workflow, not {workflow!r}; for one known by its name use start_by_name")
        definition: Workflow[..., Any] = Workflow.of(workflow)
        optioned, kwargs = definition.of_start(kwargs)
        data = optioned.encode(*args, **kwargs)
        return await self._start(optioned.name, data, optioned.options, optioned)

    async def start_by_name(
        self,
        workflow: str,
        input: Any = None,
        *,
        instance_id: str | None = None,
        on_conflict: OnConflict | None = None,
        reuse: Reuse | None = None,
        start_delay: float | timedelta | None = None,
        start_at: datetime | None = None,
    ) -> Handle[Any]:
        """For a workflow whose code is elsewhere: `input` is plain JSON, the result too."""
        options = StartOptions(
            instance_id, on_conflict or "use_existing", reuse, start_delay=start_delay, start_at=start_at
        )
        return await self._start(workflow, encode_data(input, "the input", MAX_ENCODED_BYTES), options, None)

    @overload
    async def start_many(
        self, workflow: Startable[[I], R], inputs: Iterable[I], /, instance_ids: Sequence[str] | None = None
    ) -> list[Handle[R]]: ...
    @overload
    async def start_many(
        self,
        workflow: Startable[..., R],
        inputs: Iterable[Mapping[str, Any]],
        /,
        instance_ids: Sequence[str] | None = None,
    ) -> list[Handle[R]]: ...
    async def start_many(
        self, workflow: Any, inputs: Iterable[Any], /, instance_ids: Sequence[str] | None = None
    ) -> list[Handle[Any]]:
        """One instance for each input, sent together; a workflow with named parameters takes mappings of them. Nothing
        is sent unless all inputs and ids are right. Returns when all commands are durable; when some are not, raises
        for the first of those, and to start them again with the same `instance_ids` starts none twice."""
        definition: Workflow[..., Any] = Workflow.of(workflow)
        if definition.options.instance_id is not None or _waits(definition.options):
            raise ValueError("start_many takes no instance_id, on_conflict or reuse: give it instance_ids")
        named = len(definition.parameters.names) > 1
        datas = [definition.encode(**each) if named else definition.encode(each) for each in inputs]
        ids = [None] * len(datas) if instance_ids is None else list(instance_ids)
        if len(ids) != len(datas):
            raise ValueError(f"there are {len(datas)} inputs and {len(ids)} instance_ids")
        sealed = await self._sealer.seal_all(datas, f"an input of {definition.name}")
        handles: list[Handle[Any]] = []
        records: list[OutRecord] = []
        for data, instance_id in zip(sealed, ids, strict=True):
            own = definition.options if instance_id is None else replace(definition.options, instance_id=instance_id)
            command = self._command(definition.name, data, own)
            handle = self._handle(command, definition.name, definition)
            handles.append(handle)
            known = instance_id is None and records
            records.append(self._like_before(command) if known else self._record(command, handle.instance_id))
        if instance_ids is None:
            self._hub.expect(each.instance_id for each in handles)
        for first in range(0, len(records), SENT_AT_ONCE):
            await self._send_records(records[first : first + SENT_AT_ONCE])
        return handles

    def _like_before(self, command: WireEvent) -> OutRecord:
        """Of a start that is like one that can be sent but for its ids, which were made here, and its data, which was
        checked when it was encoded and sealed."""
        headers, value = encode(command)
        return OutRecord(self.topics.commands, (command.subject or "").encode(), value, headers)

    # -- one command -----------------------------------------------------------------------------------------------
    async def _start(
        self, name: str, data: bytes | None, options: StartOptions, workflow: Workflow[..., Any] | None
    ) -> Handle[Any]:
        command = self._command(name, await self._sealer.seal(data, f"the input of {name}"), options)
        instance_id = command.subject or ""
        if options.reuse is not None:
            await self._send_and_hear(command, instance_id)
        else:
            if options.instance_id is None:
                self._hub.expect([instance_id])
            await self._send(command, instance_id)
            if options.on_conflict == "fail":
                await self._answered(command)
        return self._handle(command, name, workflow)

    def _handle(self, command: WireEvent, name: str, workflow: Workflow[..., Any] | None) -> Handle[Any]:
        return Handle(self, command.subject or "", workflow, command.id, name)  # type: ignore[arg-type]

    def _command(self, name: str, data: bytes | None, options: StartOptions) -> WireEvent:
        instance_id = options.instance_id or self._new_id(name)
        extensions = {w.X_WORKFLOW: name}
        if options.on_conflict == "fail":
            extensions[w.X_CONFLICT] = "fail"
        if options.reuse is not None:
            extensions[w.X_REUSE] = options.reuse
        now_us = self._now_us()
        begin_us = options.begin_us(now_us)
        if begin_us is not None:
            extensions[w.X_BEGIN] = new_event_time(begin_us)
        return self._command_to(w.START, instance_id, data, extensions, now_us=now_us)

    async def _answered(self, command: WireEvent) -> None:
        assert command.subject is not None
        outcome = await self._hub.wait(
            command.subject, command_id=command.id, started=True, timeout_s=START_ANSWER_TIMEOUT_S
        )
        if outcome.kind == "rejected":
            raise rejection(outcome)
        row = await self._store.get_instance(command.subject)
        if row is None or (row.event_source, row.event_id) != (command.source, command.id):
            raise InstanceExistsError(f"instance {command.subject} exists")

    async def _send_and_hear(self, command: WireEvent, instance_id: str) -> None:
        async def look() -> bytes | None:
            row = await self._store.get_instance(instance_id)
            begun = row is not None and (row.event_source, row.event_id) == (command.source, command.id)
            return accepted() if begun else None

        await self._ask(command, look, answer_timeout_s=START_ANSWER_TIMEOUT_S)


def _waits(options: StartOptions) -> bool:
    """Whether the engine has to say what became of the start."""
    return options.on_conflict == "fail" or options.reuse is not None
