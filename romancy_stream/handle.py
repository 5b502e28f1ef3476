"""What a caller holds of an instance that was started: to wait for it, and to talk to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

import orjson

from romancy_stream.cancelling import Cancellable
from romancy_stream.engine.failure import rejection_of, workflow_cancelled, workflow_failed
from romancy_stream.engine.payload import load_plain
from romancy_stream.errors import (
    InstanceNotFoundError,
    RomancyError,
)
from romancy_stream.instances import WorkflowInstance
from romancy_stream.operating import Operable
from romancy_stream.runtime.hub import Outcome
from romancy_stream.talking import Addressed
from romancy_stream.workflow import R, Workflow

if TYPE_CHECKING:
    from romancy_stream.client import BaseClient


class Handle(Addressed, Cancellable, Operable, Generic[R]):
    """A started instance."""

    _client: BaseClient
    _workflow: Workflow[..., R] | None

    def __init__(
        self,
        client: BaseClient,
        instance_id: str,
        workflow: Workflow[..., R] | None,
        command_id: str | None,
        workflow_name: str | None = None,
    ) -> None:
        self.instance_id = instance_id
        self._client = client
        self._workflow = workflow
        self._command_id = command_id
        self._workflow_name = workflow_name

    def __repr__(self) -> str:
        return f"<Handle {self.instance_id}>"

    async def result(self, timeout: float | None = None) -> R:
        """What the workflow returned, in its declared type (plain JSON where the workflow is not known here).
        `timeout` in seconds. Raises WorkflowFailedError, WorkflowCancelledError, InvalidInputError,
        UnknownWorkflowError, TimeoutError; PayloadError where the result is encoded and cannot be read here."""
        outcome = await self._client._hub.wait(
            self.instance_id,
            command_id=self._command_id,
            workflow=self._workflow_name,
            timeout_s=timeout,
            poll_interval_s=self._client._poll_interval_s,
        )
        raw = await self._client._sealer.open(self._completed(outcome))
        if self._workflow is not None:
            return self._workflow.decode_result(raw)
        plain: R = load_plain(raw, "the result")
        return plain

    def _completed(self, outcome: Outcome) -> bytes:
        if outcome.kind == "completed":
            return outcome.payload or b"null"
        if outcome.kind == "failed":
            failed = workflow_failed(self.instance_id, outcome.payload)
            raise failed from failed.__cause__
        if outcome.kind == "cancelled":
            raise workflow_cancelled(self.instance_id, outcome.payload)
        raise rejection(outcome)

    async def get(self) -> WorkflowInstance:
        """Raises InstanceNotFoundError while the engine has not seen the start yet."""
        instance = await self._client.get_instance(self.instance_id)
        if instance is None:
            raise InstanceNotFoundError(f"no instance {self.instance_id!r} yet")
        return instance


def rejection(outcome: Outcome) -> RomancyError:
    told = orjson.loads(outcome.payload or b"{}")
    return rejection_of(str(told.get("reason")), str(told.get("message")), told.get("errors", []))
