"""A small app whose commits a test can hold back, lose or refuse. Everything else is real: the store is the SQL one,
and a commit that may pass is its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from romancy_stream import App, CommitUnknownError, WorkflowContext
from romancy_stream.engine.commit import Commit
from romancy_stream.store.port import Known
from romancy_stream.store.sql import SqlStore


class GatedStore(SqlStore):
    """Commits that are `slow` wait while `gate` is shut, and `waiting` says that one does; behind it, `bad` refuses
    them. With `breaks`, the next one is lost on its way, and nobody is told. `asked`: the instances that were looked
    up."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.gate, self.waiting = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.slow: Callable[[Commit], bool] = lambda commit: True
        self.bad: Callable[[Commit], Exception | None] = lambda commit: None
        self.breaks = False
        self.asked: set[str] = set()

    async def known(self, instance_ids: Sequence[str]) -> Known:
        self.asked.update(instance_ids)
        return await super().known(instance_ids)

    async def commit(self, commit: Commit) -> int:
        if self.breaks:
            self.breaks = False
            raise CommitUnknownError("the connection broke")
        if self.slow(commit) and not self.gate.is_set():
            self.waiting.set()
            await self.gate.wait()
        error = self.bad(commit)
        if error is not None:
            raise error
        return await super().commit(commit)


class GatedApp(App):
    """`store`: the last one that it has made, of class `store_class`."""

    store: GatedStore
    store_class: type[GatedStore] = GatedStore

    def make_store(self) -> GatedStore:
        self.store = self.store_class(self.database_url)
        return self.store


def gated_app(folder: Path, ran: list[str], *, eager: bool = True) -> GatedApp:
    """One partition; its workflow `hello` publishes an event and runs an activity, which notes the name in `ran`."""
    broker, database = f"embedded://{folder / 'log'}", f"sqlite:///{folder / 'state.db'}"
    app = GatedApp("gated", broker=broker, database=database, partitions=1, eager=eager)

    @app.activity
    async def greet(name: str) -> str:
        ran.append(name)
        return f"hello {name}"

    @app.workflow
    async def hello(ctx: WorkflowContext, name: str) -> str:
        ctx.publish_event(type="hello.asked", data=name)
        return await greet(name)

    return app


def concerns(kind: str, *instance_ids: str) -> Callable[[Commit], bool]:
    """Whether such an event of one of them is in a commit."""
    return lambda commit: any(e.kind == kind and e.instance_id in instance_ids for e in commit.history)


def refuse(which: Callable[[Commit], bool]) -> Callable[[Commit], Exception | None]:
    """For `GatedStore.bad`."""
    return lambda commit: RuntimeError("the database refuses this row") if which(commit) else None
