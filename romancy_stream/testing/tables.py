"""The database of an engine that has none: rows in dicts. Applies commits as a store would, gives the core what it has
to know before a batch, and holds every commit to what commits must keep. No I/O, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from romancy_stream.engine.commit import (
    ActivityKey,
    ActivityRow,
    Commit,
    DeadLetter,
    EntityRow,
    Heartbeat,
    InstanceRow,
    ItemRow,
    MemberRow,
    OutboxRow,
    RecordedResult,
    Rejection,
    StoredEntity,
    TimerRow,
    Tombstone,
)
from romancy_stream.engine.core import EngineCore
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.inputs import Input, ItemExpired, Loaded, PartitionStart


class MemoryVault:
    """Payloads that are kept elsewhere, in a dict."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self._blobs = blobs

    async def put(self, blobs: Mapping[str, bytes]) -> None:
        self._blobs.update(blobs)

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        return {name: self._blobs[name] for name in names if name in self._blobs}


class Tables:
    """By primary key, as the real tables have them."""

    def __init__(self, partitions: int) -> None:
        self.history: dict[str, list[HistoryEvent]] = defaultdict(list)  # all runs of an instance
        self.instances: dict[str, InstanceRow] = {}
        self.activities: dict[tuple[str, int, str], ActivityRow] = {}
        self.timers: dict[tuple[str, int, str], TimerRow] = {}
        self.rejections: dict[str, Rejection] = {}
        self.results: dict[ActivityKey, RecordedResult] = {}
        self.entities: dict[str, EntityRow] = {}
        self.members: dict[tuple[str, str, str], MemberRow] = {}
        self.items: dict[tuple[str, int], ItemRow] = {}
        self.intake: dict[tuple[int, str], int] = {}
        self.tombstones: dict[str, Tombstone] = {}
        self.heartbeats: dict[ActivityKey, Heartbeat] = {}
        self.blobs: dict[str, bytes] = {}
        self.dead_letters: list[DeadLetter] = []
        self.outbox: list[OutboxRow] = []
        self.watermarks: dict[tuple[int, int], int] = {}
        self.positions = dict.fromkeys(range(partitions), 0)
        self.commit_nos = dict.fromkeys(range(partitions), 0)

    def run_of(self, instance_id: str, run: int) -> list[HistoryEvent]:
        return [event for event in self.history.get(instance_id, ()) if event.run == run]

    def _last_seq(self, instance_id: str, run: int) -> int:
        return next((event.seq for event in reversed(self.history[instance_id]) if event.run == run), 0)

    # -- what the core asks for ----------------------------------------------------------------------------------
    def starts(self) -> list[PartitionStart]:
        """What a new owner of all partitions begins with."""
        return [
            PartitionStart(
                part,
                1,
                commit_no,
                self.positions[part],
                {origin: position for (p, origin), position in self.watermarks.items() if p == part},
                tuple(timer for timer in self.timers.values() if timer.part == part),
            )
            for part, commit_no in self.commit_nos.items()
        ]

    def expired(self, now_us: int) -> list[Input]:
        """Items of entities whose time is over."""
        over = [row for row in self.items.values() if row.expires_us is not None and row.expires_us <= now_us]
        return [ItemExpired(row.part, row.entity, row.seq) for row in over]

    def prefetch(self, core: EngineCore, inputs: Sequence[Input]) -> Loaded:
        """Gives the core all but the claims on activities that it may give up on; returns it, for those to be added."""
        asking = core.asking(inputs)
        missing = core.missing(asking)
        known = {i: self.instances[i] for i in missing if i in self.instances}
        histories = {i: self.run_of(i, row.run) for i, row in known.items() if row.finished_us is None}
        loaded = Loaded(
            known,
            {i: self.rejections[i] for i in missing if i in self.rejections},
            histories,
            tombstones={i: self.tombstones[i] for i in missing if i in self.tombstones},
            entities={name: self._entity(name) for name in core.missing_entities(asking) if name in self.entities},
            taken_in=frozenset(key for key in core.intake_keys(asking) if key in self.intake),
            blobs=self.known_blobs(core.blobs(inputs, histories.values())),
        )
        core.load(loaded)
        prefixes = {(i, run): self.run_of(i, run) for i, run in core.prefixes(asking)}
        heartbeats = {key: self.heartbeats[key] for key in core.beating(asking) if key in self.heartbeats}
        blobs = {**loaded.blobs, **self.known_blobs(core.blobs((), prefixes.values()))}
        loaded = replace(loaded, histories={}, entities={}, prefixes=prefixes, heartbeats=heartbeats, blobs=blobs)
        core.load(loaded)
        return loaded

    def _entity(self, name: str) -> StoredEntity:
        members = [row for (entity, *_), row in self.members.items() if entity == name]
        return StoredEntity(
            self.entities[name], members, [row for (entity, _), row in self.items.items() if entity == name]
        )

    def known_blobs(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: self.blobs[name] for name in names if name in self.blobs}

    def close(self, keys: Sequence[ActivityKey], now_us: int) -> dict[ActivityKey, RecordedResult]:
        """Claims each for the engine where no worker was first."""
        return {key: self.results.setdefault(key, RecordedResult(key, 0, "closed", None, None, now_us)) for key in keys}

    # -- a commit ------------------------------------------------------------------------------------------------
    def apply(self, commit: Commit, now_us: int) -> None:
        for mark in commit.marks:
            assert mark.commit_no == self.commit_nos[mark.part]
            self.commit_nos[mark.part] += 1
            new = [row.position for row in commit.outbox if row.part == mark.part]
            assert new == list(range(self.positions[mark.part] + 1, mark.position + 1))
            self.positions[mark.part] = mark.position
        for event in commit.history:
            assert event.seq == self._last_seq(event.instance_id, event.run) + 1
            self.history[event.instance_id].append(event)
        self._apply_rows(commit)
        self._apply_entities(commit)
        self.outbox.extend(commit.outbox)
        self.dead_letters.extend(commit.dead_letters)
        self.rejections.update({each.instance_id: each for each in commit.rejections})
        for instance_id in commit.rejections_gone:
            del self.rejections[instance_id]
        for part, origin, position in commit.watermarks:
            self.watermarks[part, origin] = position
        for part, digest, at_us in commit.intake:
            self.intake[part, digest] = at_us
        self.blobs.update(commit.blobs)
        self.close(commit.closed, now_us)
        for tombstone in commit.deleted:
            self._delete(tombstone)

    def _apply_rows(self, commit: Commit) -> None:
        ids = [row.instance_id for row in (*commit.instances, *commit.updates)]
        assert len(ids) == len(set(ids))
        for row in commit.instances:
            before = self.instances.get(row.instance_id)
            assert before is None or before.run < row.run
            self.instances[row.instance_id] = row
        for row in commit.updates:
            assert row.instance_id in self.instances
            self.instances[row.instance_id] = row
        keys = [(a.instance_id, a.run, a.activity_id) for a in commit.activities]
        assert len(keys) == len(set(keys))
        self.activities.update(zip(keys, commit.activities, strict=True))
        set_keys = [(t.instance_id, t.run, t.timer_id) for t in commit.timers]
        assert len({*set_keys, *commit.timers_gone}) == len(set_keys) + len(commit.timers_gone)
        self.timers.update(zip(set_keys, commit.timers, strict=True))
        for key in commit.timers_gone:
            del self.timers[key]

    def _apply_entities(self, commit: Commit) -> None:
        names = [row.entity for row in commit.entities]
        assert len({*names, *commit.entities_gone}) == len(names) + len(commit.entities_gone)
        self.entities.update({row.entity: row for row in commit.entities})
        for name in commit.entities_gone:
            del self.entities[name]
        member_keys = [(row.entity, row.instance_id, row.ref) for row in commit.members]
        assert len({*member_keys, *commit.members_gone}) == len(member_keys) + len(commit.members_gone)
        self.members.update(zip(member_keys, commit.members, strict=True))
        for member in commit.members_gone:
            del self.members[member]
        item_keys = [(row.entity, row.seq) for row in commit.items]
        assert len({*item_keys, *commit.items_gone}) == len(item_keys) + len(commit.items_gone)
        self.items.update(zip(item_keys, commit.items, strict=True))
        for item in commit.items_gone:
            del self.items[item]
        assert all(entity in self.entities for entity, *_ in (*self.members, *self.items))

    def _delete(self, tombstone: Tombstone) -> None:
        gone = tombstone.instance_id
        self.tombstones[gone] = tombstone
        self.instances.pop(gone, None)
        self.history.pop(gone, None)
        self.activities = {key: row for key, row in self.activities.items() if key[0] != gone}
        self.timers = {key: row for key, row in self.timers.items() if key[0] != gone}
        self.members = {key: row for key, row in self.members.items() if key[1] != gone}
        self.results = {key: row for key, row in self.results.items() if key.instance_id != gone}
