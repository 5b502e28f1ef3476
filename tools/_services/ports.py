"""Which local port a service listens on: the one of last time, else a random free one that no other service has.

Binds probe sockets on the loopback address; writes the choice to state.json, so that parallel starts differ.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from . import settings, state
from .errors import ServiceError


def assign(name: str) -> tuple[int, int]:
    """(port, second port). Clients find a restarted service again, unless somebody took its port meanwhile."""
    with state.locked("ports"):
        entry = state.get(name)
        if entry.port and all(_is_free(port) for port in (entry.port, entry.extra_port)):
            return entry.port, entry.extra_port
        taken = {port for other in state.load().values() for port in (other.port, other.extra_port)}
        port = _choose(taken)
        extra = _choose({*taken, port})
        state.record(name, port=port, extra_port=extra)
        return port, extra


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: old connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _choose(taken: Iterable[int]) -> int:
    avoid = set(taken)
    for _ in range(settings.PORT_TRIES):
        port = random.randrange(*settings.PORT_RANGE)
        if port not in avoid and _is_free(port):
            return port
    raise ServiceError(f"no free port in {settings.PORT_RANGE} after {settings.PORT_TRIES} tries")
