"""`FaustBatchSource`: the port's `BatchSource`, a Faust app of its own from start to end. It may use the event loop it
runs in, Kafka, and a temporary directory (Faust wants one); it configures no logging and starts no thread.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from aiokafka import errors as kafka

from romancy_stream.broker.kafka.faults import describe, translated
from romancy_stream.broker.kafka.seam import BatchApp, BatchConsumer, BatchTransport, NoTables
from romancy_stream.broker.kafka.settings import REQUEST_TIMEOUT_MS, KafkaSettings
from romancy_stream.broker.kafka.watchdog import LOOKS_PER_LIMIT, StallDetector
from romancy_stream.broker.port import TP, BatchHandler, Record

log = logging.getLogger(__name__)


class FaustBatchSource:
    """Runs once: after the end of `run`, make another."""

    def __init__(
        self,
        topics: Sequence[str],
        group: str,
        handler: BatchHandler,
        *,
        bootstrap: str,
        client_id: str,
        settings: KafkaSettings,
    ) -> None:
        self._topics = frozenset(topics)
        self._group = group
        self._handler = _Marked(handler)
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._settings = settings
        self._held: set[TP] = set()
        self._consumer: BatchConsumer | None = None
        self._started = False
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        if self._started:
            raise RuntimeError("a batch source runs once")
        self._started = True
        try:
            while not self._stopping.is_set():
                await self._run_app()  # returns early when the watchdog found it hanging
        except Exception as error:
            ours = translated(error, f"consumer of {', '.join(sorted(self._topics))}")
            raise ours from (error if ours is not error else error.__cause__)
        finally:
            self._consumer = None
            self._ended.set()

    async def stop(self) -> None:
        """Also from inside the handler; only then it returns before `run` has ended."""
        self._stopping.set()
        if self._started and asyncio.current_task() is not self._handler.task:
            await self._ended.wait()

    def hold(self, *tps: TP) -> None:
        self._held.update(tps)
        if self._consumer is not None:
            self._consumer.hold(tps)

    def release(self, *tps: TP) -> None:
        self._held.difference_update(tps)
        if self._consumer is not None:
            self._consumer.release(tps)

    async def rewind(self, tp: TP, offset: int) -> None:
        if self._consumer is not None:
            self._consumer.rewind(tp, offset)

    async def commit_hint(self, offsets: Mapping[TP, int]) -> None:
        if self._consumer is not None:
            await self._consumer.commit_hint(offsets)

    async def confirm_membership(self) -> bool:
        return self._consumer is not None and await self._consumer.confirm_membership()

    async def _run_app(self) -> None:
        with tempfile.TemporaryDirectory(prefix="romancy-faust-") as directory:
            app = self._build(Path(directory))
            mine: list[asyncio.Future[Any]] = []
            faust: list[asyncio.Future[Any]] = []  # cancelling this one would leave tasks of Faust behind
            try:
                await app.start()
                mine += [asyncio.ensure_future(self._stopping.wait()), asyncio.ensure_future(self._watch())]
                faust += [asyncio.ensure_future(app.wait_until_stopped())]
                await asyncio.wait(mine + faust, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in mine:
                    wait.cancel()
                await app.stop()
                ends = await asyncio.gather(*mine, *faust, return_exceptions=True)
            if app.crashed:
                raise app.crash_reason or RuntimeError("the Faust app crashed and does not say why")
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    def _build(self, directory: Path) -> BatchApp:
        app = BatchApp(
            self._group,
            broker="kafka://" + self._bootstrap,  # Faust wants one; the connection is made by the seam
            loop=asyncio.get_running_loop(),
            datadir=directory,
            TableManager=NoTables,
            table_standby_replicas=0,
            topic_disable_leader=True,  # no topic of Faust's own
            topic_allow_declare=False,
            web_enabled=False,
            autodiscover=False,
            broker_session_timeout=self._settings.session_timeout_ms / 1000,
            broker_heartbeat_interval=self._settings.heartbeat_interval_ms / 1000,
            broker_request_timeout=REQUEST_TIMEOUT_MS / 1000,
        )
        transport = BatchTransport(app.conf.broker, app)
        transport.handler, transport.batch_topics, transport.held = self._handler, self._topics, self._held
        transport.bootstrap, transport.client_id = self._bootstrap, self._client_id
        transport.settings = self._settings
        app.transport = transport
        self._consumer = cast(BatchConsumer, app.consumer)
        return app

    async def _watch(self) -> None:
        """Returns when the consumer hangs."""
        limit_s = self._settings.stall_limit_ms / 1000
        detector = StallDetector(limit_s)
        while True:
            await asyncio.sleep(limit_s / LOOKS_PER_LIMIT)
            if self._consumer is None:
                continue
            try:
                async with asyncio.timeout(limit_s):
                    seen = await self._consumer.waiting()
            except (kafka.KafkaError, TimeoutError) as error:
                log.info("cannot compare positions with the log: %s", describe(error))
                detector.forget()
                continue
            stalled = detector.observe(seen, asyncio.get_running_loop().time())
            if stalled:
                log.warning("no progress for %g s although records wait in %s: new consumer", limit_s, stalled)
                return


class _Marked:
    """The handler, remembering which task is inside it."""

    def __init__(self, handler: BatchHandler) -> None:
        self._handler = handler
        self.task: asyncio.Task[object] | None = None

    async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        self.task = asyncio.current_task()
        try:
            return await self._handler.on_assigned(partitions)
        finally:
            self.task = None

    async def on_batch(self, batch: Mapping[TP, Sequence[Record]]) -> None:
        self.task = asyncio.current_task()
        try:
            await self._handler.on_batch(batch)
        finally:
            self.task = None

    async def on_revoked(self, partitions: set[TP]) -> None:
        self.task = asyncio.current_task()
        try:
            await self._handler.on_revoked(partitions)
        finally:
            self.task = None
