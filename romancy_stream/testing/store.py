"""What clients read of `Tables`: the reading half of the `Store` port, with the same filters, order and page tokens as
the SQL one. A reader waits until the environment has settled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from romancy_stream.engine.commit import ActivityKey, ActivityRow, DeadLetter, InstanceRow, RecordedResult
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.store.pages import Cursor, check_limit, fingerprint, make_token, read_token
from romancy_stream.store.paths import parse_filters, read_document
from romancy_stream.store.port import DeadLetterRow, InstancePage, InstanceQuery, Known
from romancy_stream.testing.tables import Tables
from romancy_stream.wire.event import RESERVED_PREFIX


class MemoryStore:
    def __init__(self, tables: Tables, settled: Callable[[], Awaitable[None]], now_us: Callable[[], int]) -> None:
        self._tables = tables
        self._settled = settled
        self._now_us = now_us
        self._replayed: dict[str, int] = {}

    async def now_us(self) -> int:
        return self._now_us()

    async def known(self, ids: Sequence[str]) -> Known:
        tables = self._tables
        return Known(
            {i: tables.instances[i] for i in ids if i in tables.instances},
            {i: tables.rejections[i] for i in ids if i in tables.rejections},
            {i: tables.tombstones[i] for i in ids if i in tables.tombstones},
        )

    async def results(self, keys: Sequence[ActivityKey]) -> Mapping[ActivityKey, RecordedResult]:
        return {key: self._tables.results[key] for key in keys if key in self._tables.results}

    # -- instances -----------------------------------------------------------------------------------------------
    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        await self._settled()
        return self._tables.instances.get(instance_id)

    async def list_instances(self, query: InstanceQuery) -> InstancePage:
        limit = check_limit(query.limit)
        filters = parse_filters(query.input or {})
        made_for = fingerprint(query, filters)
        after = None if query.page_token is None else read_token(query.page_token, made_for)
        await self._settled()
        rows = [row for row in self._tables.instances.values() if _matches(row, query)]
        if filters:
            documents = [(row, read_document(row.input)) for row in rows]
            rows = [row for row, document in documents if all(each.matches(document) for each in filters)]
        rows.sort(key=_place, reverse=True)
        if after is not None:
            rows = [row for row in rows if _place(row) < (after.started_us, after.instance_id)]
        page = rows[:limit]
        more = len(rows) > limit
        return InstancePage(page, make_token(Cursor(*_place(page[-1])), made_for) if more else None)

    async def history(self, instance_id: str, run: int | None = None) -> Sequence[HistoryEvent]:
        await self._settled()
        return self._tables.run_of(instance_id, self._run(instance_id, run))

    async def activities(self, instance_id: str, run: int | None = None) -> Sequence[ActivityRow]:
        await self._settled()
        number = self._run(instance_id, run)
        rows = [row for (i, r, _), row in self._tables.activities.items() if (i, r) == (instance_id, number)]
        return sorted(rows, key=lambda row: (row.scheduled_us, row.activity_id))

    def _run(self, instance_id: str, run: int | None) -> int:
        row = self._tables.instances.get(instance_id)
        return run if run is not None else 0 if row is None else row.run

    # -- dead letters --------------------------------------------------------------------------------------------
    async def dead_letters(self, limit: int, before: str | None = None) -> Sequence[DeadLetterRow]:
        await self._settled()
        rows = [self._dead_letter(each) for each in reversed(self._tables.dead_letters)]
        if before is not None:
            place = next((i for i, row in enumerate(rows) if row.dlq_id == before), len(rows))
            rows = rows[place + 1 :]
        return rows[:limit]

    async def dead_letter(self, dlq_id: str) -> DeadLetterRow | None:
        rows = await self.dead_letters(len(self._tables.dead_letters))
        return next((row for row in rows if row.dlq_id == dlq_id), None)

    async def mark_replayed(self, dlq_id: str, at_us: int) -> None:
        self._replayed[dlq_id] = at_us

    async def forget_rejection(self, event_source: str, event_id: str) -> None:
        rejections = self._tables.rejections
        for instance_id in [
            i for i, r in rejections.items() if (r.event_source, r.event_id) == (event_source, event_id)
        ]:
            del rejections[instance_id]

    def _dead_letter(self, letter: DeadLetter) -> DeadLetterRow:
        dlq_id = f"{letter.topic}/{letter.partition}/{letter.offset}"
        return DeadLetterRow(
            dlq_id,
            letter.topic,
            letter.partition,
            letter.offset,
            letter.at_us,
            letter.reason,
            letter.message,
            letter.key,
            letter.headers,
            letter.raw,
            letter.event_source,
            letter.event_id,
            self._replayed.get(dlq_id),
        )


def _place(row: InstanceRow) -> tuple[int, str]:
    return row.started_us, row.instance_id


def _fold(text: str) -> bytes:
    """The case of ASCII letters does not matter, that of others does."""
    return text.encode().lower()


def _matches(row: InstanceRow, query: InstanceQuery) -> bool:
    started = row.started_us
    return (
        not (query.hides and row.workflow.startswith(RESERVED_PREFIX))
        and (query.workflow_name is None or _fold(query.workflow_name) in _fold(row.workflow))
        and (query.instance_id is None or _fold(query.instance_id) in _fold(row.instance_id))
        and (query.status is None or query.status == row.status)
        and (query.started_after_us is None or started >= query.started_after_us)
        and (query.started_before_us is None or started < query.started_before_us)
        and (query.parent_id is None or query.parent_id == row.parent_id)
        and (query.parked is None or query.parked == (row.parked is not None))
        and (query.finished is None or (row.finished_us is not None) == query.finished)
        and (
            query.finished_before_us is None
            or (row.finished_us is not None and row.finished_us < query.finished_before_us)
        )
    )
