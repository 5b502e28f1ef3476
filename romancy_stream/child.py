"""A child in the hands of the workflow code that started it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from romancy_stream.engine.children import Child, ChildCall
from romancy_stream.engine.definitions import Scope
from romancy_stream.options import StartOptions
from romancy_stream.wire.malformed import MAX_ID_CHARS

R = TypeVar("R")
OF_CLASS: Final = "__romancy_workflow__"
"""Attribute of a class that is a workflow: the workflow."""


class ChildWorkflow(Protocol):
    """What has to be known of a workflow to start it as a child."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> StartOptions: ...
    def of_child(self, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]: ...
    def encode(self, *args: Any, **kwargs: Any) -> bytes | None: ...
    def decode_result(self, raw: bytes) -> Any: ...


class ChildHandle(Generic[R]):
    """A child that was started. Letting go of it changes nothing: what becomes of the child says `parent_close`."""

    def __init__(self, scope: Scope, child: Child, workflow: ChildWorkflow) -> None:
        self._scope = scope
        self._child = child
        self._workflow = workflow

    def __repr__(self) -> str:
        return f"<ChildHandle {self.instance_id}>"

    @property
    def instance_id(self) -> str:
        return self._child.instance_id

    async def result(self) -> R:
        """What the child returned. ChildWorkflowError, whose cause is the child's error; ChildCancelledError. Who is
        cancelled while it waits here waits no longer; the child goes on."""
        result: R = self._workflow.decode_result(await asyncio.shield(self._child.future))
        return result

    def cancel(self, reason: str | None = None) -> None:
        """Asks the child to end; `result()` raises ChildCancelledError when it has. Nothing happens to one that has
        ended."""
        self._scope.children.cancel(self._child, reason)

    async def _outcome(self) -> R:
        """As `result`, of a child that nobody else can cancel."""
        try:
            return await self.result()
        except asyncio.CancelledError:
            if self._workflow.options.parent_close == "cancel":
                self.cancel("its parent does not wait for it any more")
            raise


def start_child(scope: Scope, workflow: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ChildHandle[Any]:
    """ValueError, TypeError for a wrong call, PayloadError."""
    found: Any = vars(workflow).get(OF_CLASS) if isinstance(workflow, type) else workflow
    if not hasattr(found, "of_child"):
        raise TypeError(f"a child is started of a workflow, not of {workflow!r}")
    definition, rest = found.of_child(dict(kwargs))
    options = definition.options
    data = definition.encode(*args, **rest) or b"null"
    call = ChildCall(
        definition.name,
        data,
        None if options.instance_id is None else _checked_id(options.instance_id),
        options.parent_close,
        options.begin_us(scope.now_us()),
    )
    return ChildHandle(scope, scope.children.start(call), definition)


def _checked_id(instance_id: str) -> str:
    if len(instance_id) > MAX_ID_CHARS or not instance_id.isprintable():
        raise ValueError(f"instance_id must have 1 to {MAX_ID_CHARS} printable characters, not {instance_id!r}")
    return instance_id
