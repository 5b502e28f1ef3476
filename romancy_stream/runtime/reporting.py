"""What somebody who looks at the log of an engine wants to know first: what failed, what was parked, what could not be
used. Writes to the log of the program and nowhere else."""

from __future__ import annotations

import logging
from typing import Final

from romancy_stream.engine import history as h
from romancy_stream.engine.commit import Commit

log = logging.getLogger(__name__)

REPORTED: Final = {
    h.WORKFLOW_PARKED: logging.ERROR,
    h.WORKFLOW_FAILED: logging.WARNING,
    h.ACTIVITY_FAILED: logging.WARNING,
    h.COMPENSATION_FAILED: logging.ERROR,
    h.ACTIVITY_ATTEMPT_FAILED: logging.INFO,
}
REPORTED_BYTES: Final = 300
"""Of an error: its class and message stand first."""


def report(commit: Commit) -> None:
    for letter in commit.dead_letters:
        place = f"{letter.topic}/{letter.partition}/{letter.offset}"
        log.warning("dead letter %s, %s: %s", place, letter.reason, letter.message)
    for event in commit.happened():
        level = REPORTED.get(event.kind)
        if level is not None and log.isEnabledFor(level):
            what = event.attrs.get("message") or (event.payload or b"")[:REPORTED_BYTES].decode("utf-8", "replace")
            log.log(level, "%s: %s %s: %s", event.instance_id, event.kind, event.ref or "", what)
