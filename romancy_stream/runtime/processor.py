"""The stream processor: whole batches from the broker through the core into one database transaction, then out to
the broker. It owns the order of things: prefetch, decide, commit, publish; and what happens when one of these does
not go as it should.

While a commit is under way the next batch is decided, on what will be true once it is durable. Commits stay in order,
one at a time; nothing of a batch leaves before its own. Where a commit cannot be written, what was decided behind it
is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from romancy_stream.broker.port import TP, BatchSource, Record
from romancy_stream.engine.commit import Commit, Mark
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.inputs import (
    EagerRoom,
    Input,
    LeaseLapsed,
    Loaded,
    PartitionStart,
    Received,
    Refused,
    Reported,
    TimerDue,
    Unpark,
)
from romancy_stream.engine.tasks import Report
from romancy_stream.errors import CommitUnknownError, EngineError, FencedError, StoreUnavailableError
from romancy_stream.runtime.admission import Admission
from romancy_stream.runtime.clock import DatabaseClock
from romancy_stream.runtime.hints import Hints
from romancy_stream.runtime.local_results import LocalResults, LocalWorker
from romancy_stream.runtime.patience import Patience
from romancy_stream.runtime.relay import Relay
from romancy_stream.runtime.reporting import report
from romancy_stream.runtime.rest import wait_at_most
from romancy_stream.runtime.suspects import Suspects, part_of
from romancy_stream.runtime.turns import Turns
from romancy_stream.runtime.under_way import Needs, UnderWay, written
from romancy_stream.runtime.vault import NO_VAULT, Vault
from romancy_stream.store.database import CUT_OFF_S, finished, first_done, seen
from romancy_stream.store.port import Detached, PartitionSnapshot, Store
from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import Topics

log = logging.getLogger(__name__)

INPUTS_PER_COMMIT: Final = 2_000
"""Bounds a transaction, and how long the event loop is busy deciding (about 100 us an input)."""
INPUTS_WITH_BLOBS: Final = 200
"""Where each of them may bring a payload that is kept elsewhere: all of those are in memory at once."""
OVERLAP_FROM: Final = 200
"""Inputs of a batch beside whose commit the next one is decided. To decide so many takes longer than to write them;
behind a smaller one it is better to wait and see what comes meanwhile: fewer, larger commits."""
LEAVE_S: Final = 2.0
"""How long a call may hang once the engine is leaving."""
SETTLE_S: Final = 0.5
"""How long a revocation waits for the broker to acknowledge what is on its way."""
TIDY_AFTER_S: Final = 0.5
"""Acknowledged outbox rows are deleted once there was no commit for this long to take them up, or for twice as long."""
CLOCK_CHECK_S: Final = 30.0
"""No sleep for a timer is longer: the monotonic clock and the database's drift apart."""


class _NotOurs(Exception):
    """Of the commit before; the batch that waits for it is not to blame."""


class Processor:
    """A `BatchHandler`. `on_commit` hears of every commit once it is durable."""

    def __init__(
        self,
        core: EngineCore,
        store: Store,
        relay: Relay,
        owner: str,
        on_commit: Callable[[Commit], None],
        on_ownership: Callable[[frozenset[int]], None],
        vault: Vault = NO_VAULT,
        local: LocalWorker | None = None,
    ) -> None:
        self.core = core
        self._local = local
        self._results = LocalResults()
        self._under_way: UnderWay | None = None
        self._vault = vault
        self._inputs_per_commit = INPUTS_PER_COMMIT if vault is NO_VAULT else INPUTS_WITH_BLOBS
        self.source: BatchSource | None = None
        self._store = store
        self._relay = relay
        self._owner = owner
        self._on_commit = on_commit
        self._on_ownership = on_ownership
        self._clock = DatabaseClock()
        self._timers_changed = asyncio.Event()
        self._turns = Turns(self._timers_changed.set)
        self._hints = Hints(self._hint, self._timers_changed.set)
        self._admission = Admission(Topics(core.config.namespace).commands, lambda: self.source, self._is_busy)
        self._tidy_at_s = 0.0
        self._keeps_looking = True
        self._suspects = Suspects(store)
        self._passed_by: list[Input] = []
        self._patience = Patience()

    def leave(self) -> None:
        """The membership ends: from here on the database is given little time."""
        self._admission.adopt(())
        asyncio.get_running_loop().call_later(LEAVE_S, self._patience.give_up)

    # -- BatchHandler --------------------------------------------------------------------------------------------
    async def on_assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        parts = sorted({tp.partition for tp in partitions})
        async with self._turns:
            await self._drain()
            self._forget(self.core.owned)
            snapshots = await self._take_over(parts)
            positions = {tp: 0 for tp in partitions}
            for snapshot in snapshots:
                for topic, offset in snapshot.offsets.items():
                    if TP(topic, snapshot.part) in positions:
                        positions[TP(topic, snapshot.part)] = offset
            self._hints.add((*tp, offset) for tp, offset in positions.items())  # the last owner may not have come to it
            found: list[Input] = [Unpark(s.part, instance_id) for s in snapshots for instance_id in s.parked]
            found += [_lapsed(each) for each in await self._left_behind(snapshots)]
            if found:
                await self._run(found)
                await self._settle()
        self._admission.adopt(partitions)
        self._on_ownership(self.core.owned)
        return positions

    async def _left_behind(self, snapshots: Sequence[PartitionSnapshot]) -> Sequence[Detached]:
        """Attempts that a process kept to itself and that nobody has any more: a lease stands for those it has written
        down, since they run long or since its partitions went away, and `Lapses` looks after these."""
        kept = [each for snapshot in snapshots for each in snapshot.eager if not self._is_running(each)]
        if not kept:
            return ()
        leased = await self._patience.ask(lambda: self._store.detached([each.key for each in kept]))
        return [each for each in kept if each.key not in leased or leased[each.key].attempt < each.attempt]

    def _is_running(self, each: Detached) -> bool:
        local = self._local
        mine = local is not None and each.incarnation == local.incarnation
        return mine and local is not None and local.is_running(each.key, each.attempt)

    async def on_batch(self, batch: Mapping[TP, Sequence[Record]]) -> None:
        records = [record for records in batch.values() for record in records]
        inputs: list[Input] = [Received(record, decode(record)) for record in records]
        async with self._turns:
            await self._run([*inputs, *self._results.take(self.core.owned, INPUTS_PER_COMMIT)])

    async def on_revoked(self, partitions: set[TP]) -> None:
        self._admission.adopt(())
        async with self._turns.lock:
            parts = frozenset(tp.partition for tp in partitions)
            await self._drain()  # its tasks are the worker's before it says farewell to them
            if self._local is not None:
                await self._local.leave(parts)
            await self._tidy(parts)
            await self._hints.tell_last()
            self._forget(parts)
        self.hand_on()
        self._on_ownership(self.core.owned)

    async def _tidy(self, parts: frozenset[int]) -> None:
        """Takes up the last acknowledgements, so that a successor does not send again what has arrived."""
        await self._drain()
        await self._relay.settle(SETTLE_S)
        try:
            await self._patience.answer(self._suspects.release(parts))
            if self.core.owned and self._relay.has_news:
                await self._commit(await self._decide([]), patience_s=0.0)
        except (EngineError, StoreUnavailableError) as error:
            log.info("some messages will be sent again by the next owner: %s", error)

    def _forget(self, parts: frozenset[int]) -> None:
        self._hints.drop(parts)
        self.core.drop(parts)
        self._relay.drop(parts)
        self._suspects.drop(parts)

    async def _take_over(self, parts: Sequence[int]) -> Sequence[PartitionSnapshot]:
        """Epoch first, then the question whether the group still wants us, then the state."""
        epochs = await self._patience.ask(lambda: self._store.take_over(parts, self._owner))
        if self.source is not None and not await self.source.confirm_membership():
            raise FencedError("the consumer group moved on while the partitions were taken over")
        self._clock.learn(await self._patience.ask(self._store.now_us))
        snapshots = await self._patience.ask(lambda: self._store.snapshot(parts))
        _require_ours(snapshots, epochs)
        for snapshot in snapshots:
            self.core.adopt(
                PartitionStart(
                    snapshot.part,
                    snapshot.epoch,
                    snapshot.commit_no,
                    snapshot.position,
                    snapshot.watermarks,
                    tuple(snapshot.timers),
                )
            )
            self._relay.adopt(snapshot.part, snapshot.outbox, snapshot.held)
            self._suspects.adopt(snapshot)
        self._timers_changed.set()
        log.info("took over partitions %s", list(parts))
        return snapshots

    # -- timers and tidying, beside the batches ------------------------------------------------------------------
    async def feed(self, inputs: Sequence[Input]) -> Sequence[Input]:
        """What no broker brings: sweepers come upon it in the database. Returns those that are committed: not of
        partitions that are not owned any more, nor what spoils a batch. Raises what a batch raises; then the membership
        must end."""
        return await finished(self._feed(inputs))

    async def _feed(self, inputs: Sequence[Input]) -> Sequence[Input]:
        async with self._turns:
            self._passed_by.clear()
            mine = [each for each in inputs if part_of(each) in self.core.owned]
            await self._run(mine)
            await self._settle()
            self._timers_changed.set()
            return [each for each in mine if each not in self._passed_by]

    async def run_timers(self) -> None:
        """Runs for ever; raises what a batch raises."""
        # Not cancelled, but asked to end: a decision that was thrown away would fence off all after it.
        looking = asyncio.create_task(self._keep_looking(), name="romancy-looking")
        looking.add_done_callback(seen)
        try:
            await first_done([looking])
        finally:
            self._keeps_looking = False
            self._timers_changed.set()
            await first_done([looking], CUT_OFF_S)
        looking.result()

    async def _keep_looking(self) -> None:
        while True:
            await self._until_something_is_due()
            if not self._keeps_looking:
                return
            await self._look()
            self._hints.tell_if_due()

    async def _look(self) -> None:
        async with self._turns:
            if self._under_way is not None and self._under_way.task.done():
                await self._settle()
            if not self.core.owned:
                return
            results = self._results.take(self.core.owned, INPUTS_PER_COMMIT)
            due = self.core.timers.due(self._clock.now_us(), INPUTS_PER_COMMIT)
            if results or due:
                await self._run([*results, *due])
            elif self._relay.has_news and time.monotonic() >= self._tidy_at_s:
                await self._portion([])

    async def _hint(self, offsets: Mapping[TP, int]) -> None:
        if self.source is not None:
            await self.source.commit_hint(offsets)

    def _is_busy(self) -> bool:
        writes = self._under_way is not None and not self._under_way.task.done()
        return writes or self._turns.lock.locked() or self._results.waits(self.core.owned)

    async def _until_something_is_due(self) -> None:
        if self._turns.are_over or not self._keeps_looking or self._results.waits(self.core.owned):
            return
        if self._under_way is not None and self._under_way.task.done():
            return
        self._timers_changed.clear()
        wait_s = CLOCK_CHECK_S
        due_us = self.core.timers.next_due_us()
        if due_us is not None:
            wait_s = min(wait_s, (due_us - self._clock.now_us()) / 1_000_000)
        if self._relay.has_news:
            wait_s = min(wait_s, self._tidy_at_s - time.monotonic())
        elif not self._relay.idle:
            wait_s = min(wait_s, TIDY_AFTER_S)
        if (hint_in_s := self._hints.due_in_s) is not None:
            wait_s = min(wait_s, hint_in_s)
        if wait_s > 0:
            await wait_at_most(self._timers_changed, wait_s)

    # -- results of the worker in this process -------------------------------------------------------------------
    def take_report(self, part: int, report: Report) -> bool:
        """What would come over `results`, without the broker. False: the partition is somebody else's, send it."""
        if part not in self.core.owned:
            return False
        self._results.add(part, report)
        self._timers_changed.set()
        return True

    def hand_on(self) -> None:
        """Sends results whose partitions are not owned any more; call it also at the end."""
        if self._local is not None:
            self._local.send(self._results.leave(self.core.owned))

    # -- one batch -----------------------------------------------------------------------------------------------
    async def _run(self, inputs: Sequence[Input]) -> None:
        """Call it with the lock held. Of a large batch the last commit is under way when it returns: `_settle`."""
        for first in range(0, len(inputs), self._inputs_per_commit):
            try:
                await self._relay.has_room()
                await self._portion(inputs[first : first + self._inputs_per_commit])
            except BaseException:
                self._results.give_back(inputs[first:])
                raise
        if len(inputs) < OVERLAP_FROM:
            await self._settle()

    async def _portion(self, inputs: Sequence[Input]) -> None:
        """One commit for all, but for partitions whose last owners died."""
        careful, rest = self._suspects.split(inputs)
        for one in careful:
            await self._settle()
            if self._suspects.is_guilty(one):
                await self._set_aside(one, EngineError("the owner of its partition died while processing it"))
            else:
                await self._patience.answer(self._suspects.touch(one))
                await self._alone(one)
            await self._patience.answer(self._suspects.survived(one))
        if rest or not careful:
            await self._step(rest)

    async def _alone(self, one: Input) -> None:
        try:
            await self._step([one])
            await self._settle()
        except (EngineError, StoreUnavailableError):
            # Whatever that was, nobody died of it: a lock in the way, however often, makes nobody guilty.
            with contextlib.suppress(StoreUnavailableError):
                await self._patience.answer(self._suspects.acquit(one))
            raise

    async def _step(self, inputs: Sequence[Input]) -> None:
        """Decides, and begins to commit when the commit before is durable. Call it with the lock held."""
        while True:
            try:
                commit = await self._decide(inputs)
            except (EngineError, StoreUnavailableError, _NotOurs):
                raise
            except Exception as error:
                if await self._settle():
                    await self._poisoned(inputs, error)
                    return
            else:
                if await self._settle():
                    self._begin(inputs, commit)
                    return

    def _begin(self, inputs: Sequence[Input], commit: Commit) -> None:
        # The commit before may have found out about its outcome by a takeover of our own.
        commit.marks = [Mark(m.part, self.core.epoch_of(m.part), m.commit_no, m.position) for m in commit.marks]
        task = asyncio.create_task(self._finish(commit), name="romancy-commit")
        self._under_way = UnderWay(inputs, commit, written(commit), task)
        self._admission.note(inputs, commit)
        self._tidy_at_s = time.monotonic() + TIDY_AFTER_S
        task.add_done_callback(self._noticed)

    async def _finish(self, commit: Commit) -> None:
        await self._commit(commit)
        assert self._under_way is not None
        self._under_way.durable = True
        self._published(commit)

    def _noticed(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._timers_changed.set()  # somebody must take the lock and `_settle`

    async def _settle(self) -> bool:
        """Waits for the commit that is under way. False: it was not written, and the state was read anew. Raises what
        ends the membership. Call it with the lock held."""
        under_way = self._under_way
        if under_way is None:
            return True
        await first_done([under_way.task])
        self._under_way = None
        try:
            under_way.task.result()
        except (EngineError, StoreUnavailableError):
            self._results.give_back(under_way.inputs)
            raise
        except Exception as error:
            if under_way.durable:
                raise _NotOurs(f"a commit was not told of: {error!r}") from error
            try:
                await self._poisoned(under_way.inputs, error)
            except BaseException as failure:
                self._results.give_back(under_way.inputs)
                if isinstance(failure, EngineError | StoreUnavailableError) or not isinstance(failure, Exception):
                    raise
                raise _NotOurs(f"a commit could not be written: {failure!r}") from failure
            return False
        return True

    async def _drain(self) -> None:
        """The state is about to be dropped: the commit that is under way ends before, one way or another."""
        try:
            await self._settle()
        except (EngineError, StoreUnavailableError) as error:
            log.info("the last commit was not written, its inputs come again: %s", error)

    async def close(self) -> None:
        """After `leave`."""
        async with self._turns.lock:
            await self._drain()
        self._hints.close()

    async def _decide(self, inputs: Sequence[Input]) -> Commit:
        now_us = self._clock.now_us()
        while not await self._prepare(inputs, now_us):
            now_us = self._clock.now_us()  # what had to be done anew is of a later time
        sent, refused = self._relay.take_sent()
        touch = {part for part, *_ in sent} | {part for part, *_ in refused}
        commit = self.core.handle(inputs, now_us, touch & self.core.owned, self._room())
        commit.outbox_sent = [each for each in sent if each[0] in self.core.owned]
        commit.outbox_refused = [each for each in refused if each[0] in self.core.owned]
        commit.offsets = _offsets(inputs)
        return commit

    def _room(self) -> EagerRoom | None:
        if self._local is None:
            return None
        room = self._local.room()
        if self._under_way is not None and not self._under_way.durable:
            for task in self._under_way.commit.eager:
                room.take(task.queue, task.task.name)
        return room

    async def _prepare(self, inputs: Sequence[Input], now_us: int) -> bool:
        """Gives the core what it has to know before it decides. False: the state was read anew meanwhile."""
        asking = self.core.asking(inputs)
        needs = self._needs(asking)
        if self._under_way is not None and self._under_way.changes(needs) and not await self._settle():
            return False
        loaded = await self._load(inputs, needs)
        self.core.load(loaded)
        more: dict[str, Any] = {}
        prefixes = self.core.prefixes(asking)
        if prefixes and not await self._settle():
            return False
        if prefixes:
            more["prefixes"] = await self._patience.ask(lambda: self._store.history_prefixes(prefixes))
        if beating := self.core.beating(asking):
            more["heartbeats"] = await self._patience.ask(lambda: self._store.heartbeats(beating))
        if more:
            blobs = await self._blobs(self.core.blobs((), more.get("prefixes", {}).values()))
            loaded = replace(loaded, histories={}, entities={}, blobs={**loaded.blobs, **blobs}, **more)
            self.core.load(loaded)
        closings = self.core.closings(asking, now_us)
        if closings and not await self._settle():
            return False
        if closings:
            closed = await self._patience.ask(lambda: self._store.close_activities(closings, now_us))
            blobs = {**loaded.blobs, **await self._blobs(self.core.blobs((), results=closed.values()))}
            self.core.load(replace(loaded, histories={}, entities={}, closed=closed, blobs=blobs))
        return True

    def _needs(self, asking: Sequence[Input]) -> Needs:
        core = self.core
        return Needs(core.missing(asking), core.missing_entities(asking), core.intake_keys(asking))

    async def _load(self, inputs: Sequence[Input], needs: Needs) -> Loaded:
        """All inputs may bring payloads that are kept elsewhere."""
        found: dict[str, Any] = {}
        if needs.instances:
            known = await self._patience.ask(lambda: self._store.known(needs.instances))
            open_ids = [i for i, row in known.instances.items() if row.finished_us is None]
            histories = await self._patience.ask(lambda: self._store.histories(open_ids)) if open_ids else {}
            found = {
                "instances": known.instances,
                "rejections": known.rejections,
                "tombstones": known.tombstones,
                "histories": {i: list(events) for i, events in histories.items()},
            }
        found["blobs"] = await self._blobs(self.core.blobs(inputs, found.get("histories", {}).values()))
        if needs.entities:
            found["entities"] = await self._patience.ask(lambda: self._store.entities(needs.entities))
        if needs.intake:
            found["taken_in"] = frozenset(await self._patience.ask(lambda: self._store.taken_in(needs.intake)))
        return Loaded(**found)

    async def _blobs(self, names: Sequence[str]) -> Mapping[str, bytes]:
        return await self._patience.ask(lambda: self._vault.get(names), "the store of payloads") if names else {}

    def _published(self, commit: Commit) -> None:
        if commit.eager and self._local is not None:
            self._local.run(commit.eager)
        self._relay.post(commit.outbox)
        self._on_commit(commit)
        report(commit)
        self._hints.add(commit.offsets)
        if commit.timers or commit.outbox:
            self._timers_changed.set()

    async def _commit(self, commit: Commit, patience_s: float | None = None) -> None:
        if not commit.marks:
            return
        if commit.blobs:
            await self._patience.ask(lambda: self._vault.put(commit.blobs), "the store of payloads")

        is_unknown = False

        async def attempt() -> None:
            nonlocal is_unknown
            try:
                if not is_unknown:
                    self._clock.learn(await self._patience.answer(self._store.commit(commit)))
                    return
            except CommitUnknownError as error:
                log.warning("the outcome of a commit is unknown, finding out about it: %s", error)
                is_unknown = True
            if not await self._was_committed(commit):
                is_unknown = False
                raise StoreUnavailableError("the commit did not take effect")

        await self._patience.patiently(attempt, patience_s)

    async def _was_committed(self, commit: Commit) -> bool:
        """Finds out about a commit whose connection broke: a takeover of oneself. The new epoch makes sure that the
        statement cannot take effect any more; the commit number tells whether it did."""
        was_committed = await self._patience.answer(self._store.find_out(commit.marks, self._owner))
        commit.marks = [Mark(m.part, m.epoch + 1, m.commit_no, m.position) for m in commit.marks]
        for mark in commit.marks:
            self.core.owned_epoch(mark.part, mark.epoch)
            self._suspects.owned_epoch(mark.part, mark.epoch)
        return was_committed

    # -- what the database, or the core, does not take -------------------------------------------------------------
    async def _poisoned(self, inputs: Sequence[Input], error: Exception) -> None:
        """Halves a batch until the one message or instance that spoils it stands alone, and sets that aside. State
        in memory is behind or ahead of the database by now, so it is read anew first."""
        log.error("a batch of %d inputs failed, looking for the one that spoils it: %r", len(inputs), error)
        parts = sorted(self.core.owned)
        self._forget(self.core.owned)
        await self._take_over(parts)
        if len(inputs) > 1:
            middle = len(inputs) // 2
            await self._step(inputs[:middle])
            await self._step(inputs[middle:])
            while self._under_way is not None:
                await self._settle()
        elif not inputs:
            raise error
        else:
            await self._set_aside(inputs[0], error)

    async def _set_aside(self, one: Input, error: Exception) -> None:
        log.error("set aside: %r", one, exc_info=error)
        reason = f"{type(error).__name__}: {error}"[:2_000].replace("\0", "\ufffd")
        if isinstance(one, Reported):
            assert self._local is not None
            self._local.send([one.report])  # it comes again as a record, which can be kept
            return
        if isinstance(one, Received):
            code = "kills_its_owner" if isinstance(error, EngineError) else "refused_by_database"
            commit = await self._decide([Refused(one, code, reason)])
        elif not isinstance(one, TimerDue):
            self._passed_by.append(one)
            return  # the next sweep comes upon it again; what is parked stays parked
        else:
            self.core.load(await self._load([one], self._needs([one])))
            commit = self.core.park(one.instance_id, self._clock.now_us(), reason)
        await self._commit(commit)
        self._published(commit)


def _require_ours(snapshots: Iterable[PartitionSnapshot], epochs: Mapping[int, int]) -> None:
    """The epoch in a snapshot may be that of somebody who came after us: with it, both would pass the fence."""
    if any(snapshot.epoch != epochs[snapshot.part] for snapshot in snapshots):
        raise FencedError("another owner took a partition over while it was loaded")


def _lapsed(each: Detached) -> LeaseLapsed:
    """An attempt that a process kept to itself, which has lost the partition since: it may be gone with it."""
    key = each.key
    return LeaseLapsed(each.part, key.instance_id, key.run, key.activity_id, each.attempt, each.incarnation)


def _offsets(inputs: Sequence[Input]) -> list[tuple[str, int, int]]:
    """The next offset of each partition that the batch read from."""
    ends: dict[TP, int] = {}
    for each in inputs:
        if isinstance(each, Refused):
            each = each.received
        if isinstance(each, Received):
            ends[TP(each.record.topic, each.record.partition)] = each.record.offset + 1
    return [(topic, partition, end) for (topic, partition), end in ends.items()]
