"""A way to the database that breaks at a chosen moment: before the server hears of a COMMIT, or after it has done it
and before anybody here is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65_536
Moment = Literal["before", "after"]


class Cutter:
    """`armed`: cut the connection that brings the next COMMIT, at that moment. `refusing`: let nobody in."""

    def __init__(self, host: str, port: int) -> None:
        self.armed: Moment | None = None
        self.refusing = False
        self.cuts = 0
        self.turned_away = 0
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        if self.refusing:
            self.turned_away += 1
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        cut = asyncio.Event()
        ways = [
            asyncio.create_task(self._to_server(reader, up_writer, cut)),
            asyncio.create_task(self._to_client(up_reader, writer, cut)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            up_writer.transport.abort()

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.armed is not None and b"COMMIT" in data:
                moment, self.armed = self.armed, None
                self.cuts += 1
                if moment == "before":
                    return
                cut.set()
            writer.write(data)
            await writer.drain()

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if cut.is_set():
                return
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def cutter(url: str) -> AsyncIterator[tuple[Cutter, str]]:
    """The cutter, and the URL of the same database through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    made = Cutter(parts.hostname, parts.port)
    port = await made.start()
    user = f"{parts.username}@" if parts.username else ""
    try:
        yield made, urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{port}"))
    finally:
        await made.stop()
