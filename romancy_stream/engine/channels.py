"""Channels and groups: who listens, and what is kept until it is taken. Part of the core."""

from __future__ import annotations

from collections.abc import Iterable

from romancy_stream.wire.event import WireEvent


def entities_of(event: WireEvent) -> Iterable[str]:
    """The channel that a message from outside goes to."""
    return ()
