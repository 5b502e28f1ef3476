"""Keeps the engine of one process going: membership in the group, the processor, timers, sweeping; and what to do
when one of them fails. A lost fence or an absent database or broker means: drop everything, wait until both answer,
join again. A wrong configuration, or failure after failure without progress, means: stop and say so."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from romancy_stream.broker.port import BatchSource, Broker
from romancy_stream.engine.commit import Commit
from romancy_stream.engine.config import CoreConfig
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.definitions import Registry
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError, EngineError, StoreUnavailableError
from romancy_stream.runtime.expiry import DEDUP_WINDOW_S, Expiry
from romancy_stream.runtime.lapses import Lapses
from romancy_stream.runtime.patience import CALL_LIMIT_S
from romancy_stream.runtime.processor import Processor
from romancy_stream.runtime.relay import Relay
from romancy_stream.runtime.sweeper import Sweeper
from romancy_stream.runtime.vault import NO_VAULT, Vault
from romancy_stream.runtime.worker_eager import Eager
from romancy_stream.store.database import finished, first_done
from romancy_stream.store.port import Store
from romancy_stream.wire.event import Topics

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.1, 5.0)
"""First and longest pause between attempts to come back."""
FAILURES_LIMIT: Final = 8
"""Unexplained failures in a row, without a commit in between, before the engine gives up: about half a minute."""

Task = Callable[[], Awaitable[None]]


class EngineService:
    """`on_commit` and `on_ownership` feed the process's waiters."""

    def __init__(
        self,
        broker: Broker,
        store: Store,
        config: CoreConfig,
        workflows: Registry,
        *,
        worker_id: str,
        on_commit: Callable[[Commit], None],
        on_ownership: Callable[[], None],
        dedup_window_s: float = DEDUP_WINDOW_S,
        retention_s: float | None = None,
        eager: Eager | None = None,
        vault: Vault = NO_VAULT,
    ) -> None:
        self.core = EngineCore(config, workflows)
        self.topics = Topics(config.namespace)
        self.incarnation = f"{worker_id}/{uuid.uuid4().hex}"
        self._broker = broker
        self._store = store
        self._vault = vault
        self._on_commit = on_commit
        self._eager = eager
        self._on_ownership = on_ownership
        self._sweeper = Sweeper(self.core, store, broker)
        self._lapses = Lapses(self.core, store)
        self._expiry = Expiry(self.core, store, dedup_window_s, retention_s)
        self._rests = (self._sweeper.rest, self._lapses.rest, self._expiry.rest)
        self._owned: frozenset[int] = frozenset()
        self._relay: Relay | None = None
        self._assigned = asyncio.Event()
        self._progress = False

    @property
    def owned(self) -> frozenset[int]:
        return self._owned

    @property
    def unsent(self) -> tuple[int, int]:
        """Messages that are on their way, and those that the broker refuses."""
        return (0, 0) if self._relay is None else (self._relay.in_flight, self._relay.held)

    async def assigned(self) -> None:
        """Until the group has given this process partitions for the first time."""
        await self._assigned.wait()

    async def run(self) -> None:
        """Until cancelled; raises when it cannot go on."""
        failures, pause_s = 0, BACKOFF_S[0]
        while True:
            self._progress = False
            try:
                await self._session()
            except ConfigurationError:
                raise
            except (EngineError, StoreUnavailableError, BrokerUnavailableError) as error:
                log.warning("the engine lets go of its partitions and comes back: %s", error)
            except Exception as error:
                failures = 1 if self._progress else failures + 1
                log.exception("the engine failed (%d in a row)", failures)
                if failures >= FAILURES_LIMIT:
                    raise EngineError(f"the engine failed {failures} times without progress: {error!r}") from error
            finally:
                self._set_owned(frozenset())
            pause_s = BACKOFF_S[0] if self._progress else min(2 * pause_s, BACKOFF_S[1])
            await asyncio.sleep(pause_s)
            await self._until_reachable(pause_s)

    async def _session(self) -> None:
        """One membership in the group. Raises what ended it."""
        relay = self._relay = Relay(self._broker)
        processor = Processor(
            self.core,
            self._store,
            relay,
            self.incarnation,
            self._committed,
            lambda owned: self._set_owned(owned),
            self._vault,
            local=self._eager,
        )
        if self._eager is not None:
            self._eager.engine = processor
        source = self._broker.batches(
            [self.topics.commands, self.topics.results], f"{self.topics.namespace}.engine", processor
        )
        processor.source = source
        running = asyncio.create_task(source.run(), name="romancy-source")
        others = [
            asyncio.create_task(processor.run_timers(), name="romancy-timers"),
            asyncio.create_task(self._sweeper.run(), name="romancy-sweeper"),
            asyncio.create_task(self._lapses.run(processor.feed), name="romancy-lapses"),
            asyncio.create_task(self._expiry.run(processor.feed), name="romancy-expiry"),
        ]
        try:
            await _first_failure([running, *others, relay.failure])
        finally:
            # Also where the process begins to leave while a membership that failed is being ended.
            await _to_its_end(self._leave(processor, source, running, others, relay))

    async def _leave(
        self,
        processor: Processor,
        source: BatchSource,
        running: asyncio.Task[None],
        others: Sequence[asyncio.Task[None]],
        relay: Relay,
    ) -> None:
        processor.leave()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await source.stop()
        await asyncio.gather(running, return_exceptions=True)
        try:
            await processor.close()
        finally:
            self._relay = None
            await relay.close()
            self.core.drop(self.core.owned)
            if self._eager is not None:
                self._eager.engine = None
            processor.hand_on()

    def _committed(self, commit: Commit) -> None:
        self._progress = True
        for rest in self._rests:
            rest.stir()
        self._on_commit(commit)

    def _set_owned(self, owned: frozenset[int]) -> None:
        self._sweeper.rest.hurry()
        self._lapses.rest.hurry()
        self._expiry.rest.stir()
        if owned != self._owned:
            self._owned = owned
            self._on_ownership()
        if owned:
            self._assigned.set()

    async def _until_reachable(self, pause_s: float) -> None:
        """Waits for the database and the broker to answer."""
        while True:
            try:
                await finished(self._store.now_us(), CALL_LIMIT_S)
                await self._broker.topics()
                return
            except (StoreUnavailableError, BrokerUnavailableError) as error:
                log.warning("still away: %s", error)
                pause_s = min(2 * pause_s, BACKOFF_S[1])
                await asyncio.sleep(pause_s)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """However often its caller is cancelled meanwhile. `work` ends by itself."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await first_done([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def _first_failure(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Raises what the first of them raises; one that ends without an error ends the session as well."""
    done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()
    raise EngineError("the group membership ended")
