"""Asks a Kafka broker, in its own protocol, whether it is in service: one Metadata request, no client library."""

from __future__ import annotations

import socket
import struct

METADATA_API, METADATA_VERSION, CORRELATION_ID = 3, 4, 7
PING_TIMEOUT_S = 2.0
ANSWER_LIMIT_BYTES = 65536  # the answer about one broker and no topic is about 100 bytes


def answers(host: str, port: int) -> bool:
    """True when the broker answers and counts at least one live broker (itself)."""
    client = b"tools-services"
    header = struct.pack(">hhih", METADATA_API, METADATA_VERSION, CORRELATION_ID, len(client)) + client
    body = struct.pack(">ib", 0, 0)  # no topics, no auto-creation
    request = header + body
    try:
        with socket.create_connection((host, port), PING_TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _exactly(connection, 4))
            if not 12 <= size <= ANSWER_LIMIT_BYTES:
                return False
            correlation, _throttle_ms, brokers = struct.unpack(">iii", _exactly(connection, size)[:12])
    except OSError:
        return False  # not listening yet, or closing: the caller polls
    return bool(correlation == CORRELATION_ID and brokers >= 1)


def _exactly(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = connection.recv(count - len(received))
        if not chunk:
            raise ConnectionResetError("the broker closed the connection")
        received += chunk
    return received
