"""Runs of an instance that follow one another: by recurring, or because the history has grown too long. Part of the
core. (What operators do to runs is in `operations`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from romancy_stream.engine import history as h
from romancy_stream.engine import slots
from romancy_stream.engine.batch import Batch, Entry
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.instance import BY_ENGINE, Command
from romancy_stream.engine.starts import begun_with
from romancy_stream.errors import HistoryTooLongError, InvalidInputError

if TYPE_CHECKING:
    from romancy_stream.engine.core import EngineCore

RECUR_PAUSE_US: Final = 100_000
"""Before the run that follows one which did not wait for anything: a workflow that does nothing but recur makes some
twenty runs a second, and leaves its partition to the others."""

INHERITED: Final = ("event_source", "event_id", "correlation_id", "traceparent", "priority")
"""Attributes of `workflow.started` that the next run has too. With those of the event, a start that comes again is
known whatever run the instance is in. Its parent goes on, too: the one that it has now."""


# -- the next one ----------------------------------------------------------------------------------------------------
def recurred(core: EngineCore, batch: Batch, entry: Entry, command: Command) -> None:
    """The run is over and the next one begins, in one step: nobody sees the instance without a run."""
    state, live = entry.state, entry.live
    assert live is not None
    definition = core.workflows.get(state.workflow, live.definition)
    arguments = live.following
    if definition is not live.definition:  # a newer version of it
        try:
            arguments = definition.decode(live.following_input)
        except InvalidInputError as error:
            core.answer(batch, entry, [Command(h.WORKFLOW_FAILED, payload=encode_error(error, retryable=False))])
            return
    batch.record(entry, command.kind, None, command.attrs, command.payload)
    attrs = {"workflow": state.workflow, **begun_with(definition), "recurred": True, **command.attrs}
    attrs |= {name: state.begun[name] for name in INHERITED if name in state.begun}
    attrs |= {} if state.parent is None else {"parent": state.parent}
    attrs |= slots.begun(core, definition, live.following_input)
    if state.started_us == batch.now_us:
        attrs["begin_us"] = batch.now_us + RECUR_PAUSE_US
    started = HistoryEvent(
        state.instance_id, state.run + 1, 1, batch.now_us, h.WORKFLOW_STARTED, None, attrs, command.payload
    )
    core.begin(batch, started, state.part, arguments)
    slots.pass_on(batch, state)


def too_long(core: EngineCore, batch: Batch, entry: Entry) -> None:
    """Ends a run whose history has reached its limit."""
    state = entry.state
    error = HistoryTooLongError(
        f"run {state.run} has {state.seq:,} events and may have {core.config.history_limit:,}: "
        "a workflow that goes on and on ends its runs with ctx.recur"
    )
    core.evict(entry)
    core.stats["history_too_long"] += 1
    failed = Command(h.WORKFLOW_FAILED, None, {BY_ENGINE: True}, encode_error(error, retryable=False))
    core.answer(batch, entry, [failed])


ENDINGS = {h.WORKFLOW_RECURRED: recurred}
