"""How clients and handles talk to running workflows: signals, updates and queries, and which versions of them run. A
signal or an update is a command to the engine; a query is answered here, from the history, by the workflow's code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from romancy_stream.commanding import Commanding
from romancy_stream.engine.handlers import handler_of, unknown_handler
from romancy_stream.engine.payload import MAX_ENCODED_BYTES, encode_data, load_plain
from romancy_stream.engine.queries import ask
from romancy_stream.engine.signals import OK, answer_in, update_ref
from romancy_stream.errors import ConfigurationError, InstanceNotFoundError
from romancy_stream.interaction import Handler, P, Query, R, Signal, Update
from romancy_stream.registry import Registry
from romancy_stream.wire import event as w
from romancy_stream.wire.event import WireEvent
from romancy_stream.workflow import I, Workflow

AnyWorkflow = Workflow[..., Any]


@dataclass(frozen=True, slots=True)
class WorkflowVersion:
    """A version of a workflow that is in this process (`is_here`), or that has `open_instances`, `parked` among them.
    `is_default`: new runs get it here. `version` None: a workflow without versions."""

    workflow_name: str
    version: str | None
    open_instances: int
    parked: int
    is_here: bool
    is_default: bool


class Talking(Commanding):
    """A part of every client. By name, one argument is the data itself, named ones are an object; the typed way, with
    the handler in place of its name, checks both."""

    registry: Registry

    # -- signals -------------------------------------------------------------------------------------------------
    @overload
    async def signal(self, instance_id: str, signal: Signal[P], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    async def signal(self, instance_id: str, signal: str, /, *args: Any, **kwargs: Any) -> None: ...
    async def signal(self, instance_id: str, signal: Any, /, *args: Any, **kwargs: Any) -> None:
        """Returns when the signal is durable in the broker; what the instance cannot take becomes a dead letter.
        TypeError for a wrong call, PayloadError."""
        await self._signal(instance_id, _name(signal, Signal), _data(signal, None, args, kwargs))

    async def _signal(self, instance_id: str, name: str, data: bytes | None) -> None:
        command = await self._said(w.SIGNAL, instance_id, name, data)
        await self._send(command, instance_id)

    # -- updates -------------------------------------------------------------------------------------------------
    @overload
    async def update(self, instance_id: str, update: Update[[], R], /, *, timeout: float | None = None) -> R: ...
    @overload
    async def update(
        self, instance_id: str, update: Update[[I], R], argument: I, /, *, timeout: float | None = None
    ) -> R: ...
    @overload
    async def update(self, instance_id: str, update: Update[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def update(
        self, instance_id: str, update: str, /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any: ...
    async def update(self, instance_id: str, update: Any, /, *args: Any, **kwargs: Any) -> Any:
        """What the update returned. `timeout` in seconds (one with several parameters takes none: use asyncio.timeout);
        after a TimeoutError it may still happen. UpdateRejectedError: its validator refused, nothing happened;
        UpdateFailedError: it raised; InstanceNotFoundError, InstanceFinishedError, InstanceParkedError,
        UnknownHandlerError, InvalidInputError; TypeError for a wrong call, PayloadError."""
        name, timeout_s = _name(update, Update), _timeout(update, kwargs)
        raw = await self._update(instance_id, name, _data(update, None, args, kwargs), timeout_s)
        return update.decode_result(raw) if isinstance(update, Update) else load_plain(raw, "the result")

    async def _update(self, instance_id: str, name: str, data: bytes | None, timeout_s: float | None) -> bytes:
        command = await self._said(w.UPDATE, instance_id, name, data)
        ref = update_ref(command.source, command.id)

        async def look() -> bytes | None:
            return answer_in(await self._store.history(instance_id), ref)

        told = await self._ask(command, look, timeout_s)
        return await self._sealer.open(told[len(OK) : -1])

    async def _said(self, type_: str, instance_id: str, name: str, data: bytes | None) -> WireEvent:
        sealed = await self._sealer.seal(data, f"the argument of {name!r}")
        return self._command_to(type_, instance_id, sealed, {w.X_NAME: name})

    # -- queries -------------------------------------------------------------------------------------------------
    @overload
    async def query(self, instance_id: str, query: Query[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def query(self, instance_id: str, query: str, /, *args: Any, **kwargs: Any) -> Any: ...
    async def query(self, instance_id: str, query: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The answer of an instance, which may have ended, as of its last step. Nothing is recorded. It takes the
        workflow's code: ConfigurationError where this app does not have it. Raises what the query raises, also
        InstanceNotFoundError, UnknownHandlerError, ReadOnlyError; NonDeterminismError where the code is another one
        than the instance's."""
        return await self._query(instance_id, query, args, kwargs, None)

    async def _query(self, instance_id: str, query: Any, args: Any, kwargs: Any, workflow: AnyWorkflow | None) -> Any:
        name = _name(query, Query)
        found: list[Any] = [query]

        def encode(handler: Any) -> bytes | None:
            found[0] = query if isinstance(query, Query) else handler
            return _data(found[0], None, args, kwargs)

        raw = await self._answer(instance_id, name, encode, workflow)
        return found[0].decode_result(raw)

    async def _answer(
        self, instance_id: str, name: str, encode: Callable[[Any], bytes | None], workflow: AnyWorkflow | None = None
    ) -> bytes:
        """Raw JSON. `encode` makes the data of the handler that was found."""
        history = await self._store.history(instance_id)
        if not history:
            raise InstanceNotFoundError(f"no instance {instance_id!r}")
        definition = self._code_of(history[0].attrs["workflow"], history[0].attrs.get("version"), workflow)
        handler = handler_of(definition, "query", name)
        if handler is None:
            raise unknown_handler(definition, "query", name)
        blobs = await self._sealer.blobs_of(history)
        return ask(definition, history, name, encode(handler), self._sealer.sealing, blobs)

    def _code_of(self, name: str, version: str | None, workflow: AnyWorkflow | None) -> AnyWorkflow:
        found = self.registry.workflows.at(name, version)
        if found is None and workflow is not None and (workflow.name, workflow.version) == (name, version):
            found = workflow
        if found is None:
            which = "" if version is None else f", version {version!r},"
            raise ConfigurationError(
                f"the code of workflow {name!r}{which} is not here, and a query runs it: define it with @app.workflow "
                "or call app.include(...), or ask through a handle that was given the workflow"
            )
        return found

    # -- versions ------------------------------------------------------------------------------------------------
    async def versions(self) -> Sequence[WorkflowVersion]:
        """Of all workflows: those in this process, and those of open instances. What has none left need not stay."""
        workflows = self.registry.workflows
        open_ = {(each.workflow, each.version): each for each in await self._store.open_versions()}
        known = {(each.name, each.version) for each in workflows.all()}
        found = []
        for name, version in sorted(known | open_.keys(), key=lambda key: (key[0], key[1] or "")):
            if name.startswith(w.RESERVED_PREFIX):
                continue
            used, newest = open_.get((name, version)), workflows.get(name)
            is_default = newest is not None and newest.version == version
            found.append(
                WorkflowVersion(
                    name,
                    version,
                    0 if used is None else used.instances,
                    0 if used is None else used.parked,
                    (name, version) in known,
                    is_default,
                )
            )
        return found


class Addressed:
    """A part of every handle."""

    instance_id: str
    _client: Talking
    _workflow: AnyWorkflow | None

    @overload
    async def signal(self, signal: Signal[P], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    async def signal(self, signal: str, /, *args: Any, **kwargs: Any) -> None: ...
    async def signal(self, signal: Any, /, *args: Any, **kwargs: Any) -> None:
        """As `client.signal`."""
        name = _name(signal, Signal)
        data = _data(signal, self._handler("signal", signal), args, kwargs)
        await self._client._signal(self.instance_id, name, data)

    @overload
    async def update(self, update: Update[[], R], /, *, timeout: float | None = None) -> R: ...
    @overload
    async def update(self, update: Update[[I], R], argument: I, /, *, timeout: float | None = None) -> R: ...
    @overload
    async def update(self, update: Update[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def update(self, update: str, /, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any: ...
    async def update(self, update: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `client.update`; by name, the result has its type where the handle knows the workflow."""
        name, timeout_s = _name(update, Update), _timeout(update, kwargs)
        known = self._handler("update", update)
        data = _data(update, known, args, kwargs)
        raw = await self._client._update(self.instance_id, name, data, timeout_s)
        return load_plain(raw, "the result") if known is None else known.decode_result(raw)

    @overload
    async def query(self, query: Query[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def query(self, query: str, /, *args: Any, **kwargs: Any) -> Any: ...
    async def query(self, query: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `client.query`; the workflow that the handle was made with need not be registered."""
        return await self._client._query(self.instance_id, query, args, kwargs, self._workflow)

    def _handler(self, kind: str, said: Any) -> Any:
        """None: it is not known here."""
        if not isinstance(said, str):
            return said
        handler = None if self._workflow is None else self._workflow.handlers.get(said)
        return handler if handler is not None and handler.kind == kind else None


def _name(said: Any, kind: type[Handler[..., Any]]) -> str:
    if isinstance(said, kind):
        return said.name
    if isinstance(said, str) and said:
        return said
    raise TypeError(f"{said!r} is no {kind.__name__.lower()}, nor the name of one")


def _data(said: Any, known: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
    handler = said if isinstance(said, Handler) else known
    if handler is not None:
        data: bytes | None = handler.encode(*args, **kwargs)
        return data
    if len(args) > 1 or (args and kwargs):
        raise TypeError(f"{said!r} is only known by its name: give it one argument, or named ones")
    if not args and not kwargs:
        return None
    return encode_data(args[0] if args else kwargs, f"the argument of {said!r}", MAX_ENCODED_BYTES)


def _timeout(update: Any, kwargs: dict[str, Any]) -> float | None:
    """Taken out of the arguments, where it is none of the update's own."""
    if isinstance(update, Update) and (len(update.parameters.names) > 1 or "timeout" in update.parameters.names):
        return None
    timeout_s: float | None = kwargs.pop("timeout", None)
    return timeout_s
