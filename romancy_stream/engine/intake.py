"""The identity of a message from outside, as the intake table keeps it. Pure."""

from __future__ import annotations

import hashlib

from romancy_stream.wire.event import WireEvent


def digest(scope: str, event: WireEvent) -> str:
    """Of a message from outside, which its source and id identify, and what it was taken in for."""
    return hashlib.sha256(f"{scope}\0{event.source}\0{event.id}".encode()).hexdigest()
