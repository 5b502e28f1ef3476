"""An app whose database calls fail on purpose: the n-th of one name, in a chosen way. Everything else is
the real thing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from romancy_stream import App
from romancy_stream.errors import CommitUnknownError, StoreUnavailableError
from romancy_stream.store.sql import SqlStore

CALLS: Final = (
    "take_over",
    "snapshot",
    "known",
    "histories",
    "close_activities",
    "results",
    "worker_outbox",
    "delete_worker_outbox",
    "commit",
)


@dataclass
class Fault:
    """`kind`:

    - "unavailable": that call fails and did nothing
    - "unknown_before", "unknown_after": a commit breaks, without or with effect (other calls: unavailable)
    - "crash_before", "crash_after": this process never reaches the database again, from just before or after the call
    """

    kind: str
    name: str = ""
    at: int = 0
    calls: int = 0
    dead: bool = False

    async def around(self, name: str, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        if self.dead:
            raise StoreUnavailableError("this process is as good as dead")
        self.calls += name == self.name
        if name != self.name or self.calls != self.at:
            return await call(*args)
        if self.kind == "crash_before":
            self.dead = True
        elif self.kind == "crash_after":
            await call(*args)
            self.dead = True
        elif self.kind == "unknown_after" and name == "commit":
            await call(*args)
            raise CommitUnknownError("the connection broke after the commit")
        elif self.kind == "unknown_before" and name == "commit":
            raise CommitUnknownError("the connection broke before the commit")
        raise StoreUnavailableError(f"{self.kind} at call {self.at}, {name}")


class FaultyStore(SqlStore):
    def __init__(self, url: str, fault: Fault) -> None:
        super().__init__(url)
        for name in CALLS:
            self._break(name, fault)

    def _break(self, name: str, fault: Fault) -> None:
        real = getattr(self, name)

        async def around(*args: Any) -> Any:
            return await fault.around(name, real, *args)

        setattr(self, name, around)


class FaultyApp(App):
    fault: Fault

    def make_store(self) -> SqlStore:
        return FaultyStore(self.database_url, self.fault)
