"""Verify and rebuild on histories that real workflows made: what is tampered with is found, exactly, and repaired."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from romancy_stream import ActivityContext, RetryPolicy, TerminalError, WorkflowContext, audit
from romancy_stream.app import App
from romancy_stream.audit import Difference, Report, json_equal, rebuild, verify
from romancy_stream.errors import BrokenLogError, ConfigurationError, FencedError
from romancy_stream.store.sql import SqlStore
from tests.store.writing import execute
from tests.support import eventually

DATABASES = [
    pytest.param("sqlite_db", id="sqlite"),
    pytest.param("postgres_db", id="postgresql", marks=pytest.mark.postgres),
    pytest.param("mariadb_db", id="mariadb", marks=pytest.mark.mariadb),
]
BIG = 12345678901234567890123456789
Snapshot = tuple[Any, Any, Any]


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def make_app(url: str, folder: Path) -> App:
    app = App("shop", broker=f"embedded://{folder / 'log'}", database=url, partitions=4)

    @app.activity(retry=RetryPolicy(max_attempts=3, initial_interval=0.01))
    async def step(ctx: ActivityContext, fails: int, value: Any) -> Any:
        if ctx.info.attempt <= fails:
            raise RuntimeError(f"attempt {ctx.info.attempt} of {value!r}")
        return value

    @app.activity(retry=RetryPolicy(max_attempts=9, initial_interval=3600))
    async def backs_off() -> None:
        raise RuntimeError("comes back in an hour")

    @app.activity
    async def refuses() -> None:
        raise TerminalError("never")

    @app.workflow
    async def plan(ctx: WorkflowContext, steps: list[Any]) -> Any:
        """Each step: [name, argument]."""
        got: list[Any] = []
        for name, argument in steps:
            if name == "step":
                got.append(await step(argument, {"at": len(got), "n": BIG}))
            elif name == "tolerated":
                try:
                    await step(9, "gives up")
                except Exception as error:
                    got.append(str(error))
            elif name == "both":
                got += await asyncio.gather(step(0, "é\u2028"), step(argument, 0.1))
            elif name == "sleep":
                await ctx.sleep(argument)
            elif name == "raced":
                try:
                    await asyncio.wait_for(ctx.sleep(3600), argument)
                except TimeoutError:
                    got.append("late")
            elif name == "backs_off":
                await backs_off()
            elif name == "abandon":
                await asyncio.gather(backs_off(), refuses())
            elif name == "fail":
                raise ValueError("as asked for")
        return got

    return app


ENDS = [["fail", 0], ["abandon", 0], ["sleep", 3600], ["backs_off", 0], ["tolerated", 0], ["raced", 0.01]]


def random_plan(rng: random.Random) -> list[list[Any]]:
    middle = [["step", 0], ["step", 1], ["both", 1], ["sleep", 0.01], ["tolerated", 0], ["raced", 0.005]]
    steps = [rng.choice(middle) for _ in range(rng.randrange(4))]
    return [*steps, rng.choice(ENDS)] if rng.random() < 0.7 else steps


@asynccontextmanager
async def opened(app: App) -> AsyncIterator[SqlStore]:
    store = app.make_store()
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def settled(store: SqlStore, plans: dict[str, list[list[Any]]]) -> bool:
    """Every instance has come as far as it can."""
    instances, activities, _ = await store.projected(list(plans))
    backing_off = {row.instance_id for row in activities if (row.name, row.status) == ("backs_off", "backing_off")}
    for row in instances:
        last = (plans[row.instance_id] or [["", 0]])[-1]
        asleep = last == ["sleep", 3600] and row.status == "waiting_for_timer"
        waits = last[0] == "backs_off" and row.instance_id in backing_off
        if row.finished_us is None and not (asleep or waits):
            return False
    return len(instances) == len(plans)


async def filled(app: App, seed: int, instances: int = 30) -> dict[str, list[list[Any]]]:
    """Runs random workflows in `app` until each has ended or waits for an hour."""
    rng = random.Random(seed)
    plans = {f"i-{number:02}": random_plan(rng) for number in range(instances)}
    # One of each sort, whatever the seed.
    plans |= {f"e-{number}": [["step", 1], ["both", 0], end] for number, end in enumerate(ENDS)}
    async with app:
        workflow: Any = app.registry.workflows["plan"]
        for instance_id, steps in plans.items():
            await app.start(workflow, steps, instance_id=instance_id)
        async with opened(app) as store:
            await eventually(lambda: settled(store, plans), deadline_s=120, every_s=0.1)
    return plans


async def all_rows(store: SqlStore, ids: list[str]) -> Snapshot:
    return await store.projected(ids)


def same_rows(left: Snapshot, right: Snapshot) -> bool:
    """As values: what a database does to the text of JSON does not count."""
    for some, others in zip(left, right, strict=True):
        if len(some) != len(others) or any(audit._columns(one, other) for one, other in zip(some, others, strict=True)):
            return False
    return True


# -- tampering -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tampering:
    """`statement` makes the difference; `columns` None: a missing row."""

    table: str
    key: tuple[Any, ...]
    kind: str
    columns: frozenset[str]
    statement: str
    values: dict[str, Any]


def key_columns(table: str) -> list[str]:
    third = {"romancy_activities": ["run", "activity_id"], "romancy_timers": ["run", "timer_id"]}
    return ["instance_id", *third.get(table, [])]


def where(table: str, key: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    columns = key_columns(table)
    return " AND ".join(f"{column} = :key_{column}" for column in columns), {
        f"key_{column}": value for column, value in zip(columns, key, strict=True)
    }


def json_value(dialect: str) -> str:
    return "CAST(:value AS jsonb)" if dialect == "postgresql" else ":value"


CHANGES: dict[str, list[tuple[str, Any]]] = {
    "romancy_instances": [
        ("status", "cancelled"),
        ("seq", 999),
        ("run", 7),
        ("part", 77),
        ("workflow", "other"),
        ("parked", "not parked at all"),
        ("updated_us", 5),
        ("finished_us", 5),
        ("event_id", "somebody else's"),
        ("input", f'[["step", {BIG + 1}]]'),
        ("output", "0.10000000000000000000000001"),
        ("error", '{"type": "none"}'),
    ],
    "romancy_activities": [
        ("status", "closed"),
        ("attempt", 99),
        ("name", "other"),
        ("queue", "other"),
        ("scheduled_us", 5),
        ("next_attempt_us", 5),
        ("finished_us", 6),
        ("error", "null"),
    ],
    "romancy_timers": [("due_us", 5), ("part", 77)],
}
JSON_COLUMNS = {"input", "output", "error"}


def tamperings(rows: Snapshot, dialect: str, rng: random.Random) -> list[Tampering]:
    """About a third of the rows, each in one way."""
    made = []
    for table, of_table in zip(CHANGES, rows, strict=True):
        for row in of_table:
            if rng.random() > 0.35:
                continue
            key = tuple(getattr(row, column) for column in key_columns(table))
            condition, values = where(table, key)
            if rng.random() < 0.25:
                statement = f"DELETE FROM {table} WHERE {condition}"
                made.append(Tampering(table, key, "missing", frozenset(), statement, values))
                continue
            column, value = rng.choice(CHANGES[table])
            new = json_value(dialect) if column in JSON_COLUMNS else ":value"
            statement = f"UPDATE {table} SET {column} = {new} WHERE {condition}"
            values = values | {"value": value}
            made.append(Tampering(table, key, "differs", frozenset({column}), statement, values))
    return made


def found(report: Report) -> set[tuple[str, tuple[Any, ...], str, frozenset[str]]]:
    return {(d.table, d.key, d.kind, frozenset(each.column for each in d.columns)) for d in report.differences}


@pytest.mark.parametrize("seed", [1, 2])
async def test_tampering_is_found_exactly_and_repaired(url: str, tmp_path: Path, seed: int) -> None:
    app = make_app(url, tmp_path)
    plans = await filled(app, seed)
    async with opened(app) as store:
        report = await verify(store)
        assert report == Report(len(plans), report.rows, ())
        assert report.clean
        before = await all_rows(store, list(plans))
        assert {row.status for row in before[0]} >= {"completed", "failed", "waiting_for_timer", "running"}
        assert {row.status for row in before[1]} == {"completed", "failed", "backing_off", "abandoned"}
        assert before[2], "no timer is open"
        assert report.rows == sum(map(len, before))

        rng = random.Random(seed)
        done = tamperings(before, store.db.dialect, rng)
        assert len(done) > 10
        for each in done:
            await execute(store, each.statement, **each.values)
        report = await verify(store)
        assert found(report) == {(each.table, each.key, each.kind, each.columns) for each in done}

        some = sorted({str(each.key[0]) for each in done})[:3]
        assert found(await verify(store, some)) == {
            (each.table, each.key, each.kind, each.columns) for each in done if each.key[0] in some
        }
        assert await rebuild(store, some) == 3
        assert (await verify(store, some)).clean
        assert {d.instance_id for d in (await verify(store)).differences} == {
            each.key[0] for each in done if each.key[0] not in some
        }

        assert await rebuild(store) == len(plans)
        assert (await verify(store)).clean
        assert same_rows(await all_rows(store, list(plans)), before)


async def test_tables_that_were_emptied_come_back(url: str, tmp_path: Path) -> None:
    app = make_app(url, tmp_path)
    plans = await filled(app, 3, instances=5)
    async with opened(app) as store:
        before = await all_rows(store, list(plans))
        for table in CHANGES:
            await execute(store, f"DELETE FROM {table}")
        assert {d.kind for d in (await verify(store)).differences} == {"missing"}
        assert await rebuild(store) == len(plans)
        assert (await verify(store)).clean
        assert same_rows(await all_rows(store, list(plans)), before)


async def test_rows_without_a_log_are_unexpected_and_removed(url: str, tmp_path: Path) -> None:
    app = make_app(url, tmp_path)
    plans = await filled(app, 4, instances=2)
    async with opened(app) as store:
        before = await all_rows(store, list(plans))
        timer = "INSERT INTO romancy_timers (instance_id, run, timer_id, part, due_us) VALUES (:id, 1, :timer, 0, 5)"
        await execute(store, timer, id="ghost", timer="timer:1")
        await execute(store, timer, id="i-00", timer="timer:9")
        await execute(
            store,
            "INSERT INTO romancy_activities (instance_id, run, activity_id, name, queue, status, attempt, scheduled_us,"
            " updated_us) VALUES ('wraith', 1, 'step:1', 'step', 'default', 'scheduled', 1, 5, 5)",
        )
        report = await verify(store)
        assert set(report.differences) == {
            Difference("romancy_timers", ("ghost", 1, "timer:1"), "unexpected"),
            Difference("romancy_timers", ("i-00", 1, "timer:9"), "unexpected"),
            Difference("romancy_activities", ("wraith", 1, "step:1"), "unexpected"),
        }
        assert report.instances == len(plans) + 2
        assert (await verify(store, ["ghost"])).differences
        assert await rebuild(store) == len(plans)
        assert (await verify(store)).clean
        assert same_rows(await all_rows(store, [*plans, "ghost", "wraith"]), before)


async def test_json_that_is_written_differently_is_the_same(url: str, tmp_path: Path) -> None:
    app = make_app(url, tmp_path)
    await filled(app, 5, instances=0)
    async with opened(app) as store:
        output = (await all_rows(store, ["e-5"]))[0][0].output
        assert output is not None
        assert str(BIG).encode() in output
        new = json_value(store.db.dialect)
        change = f"UPDATE romancy_instances SET output = {new} WHERE instance_id = 'e-5'"
        await execute(store, change, value=json.dumps(json.loads(output), indent=3, sort_keys=True))
        assert (await verify(store)).clean
        await execute(store, change, value=output.decode().replace(str(BIG), str(BIG + 1)))
        [difference] = (await verify(store)).differences
        [column] = difference.columns
        assert (column.column, json_equal(column.expected, output)) == ("output", True)


async def test_a_log_with_a_hole_is_unreadable_and_stays_as_it_is(url: str, tmp_path: Path) -> None:
    app = make_app(url, tmp_path)
    plans = await filled(app, 6, instances=3)
    async with opened(app) as store:
        before = await all_rows(store, ["e-0"])
        await execute(store, "DELETE FROM romancy_history WHERE instance_id = 'e-0' AND seq = 2")
        await execute(store, "UPDATE romancy_instances SET status = 'cancelled' WHERE instance_id = 'e-1'")
        report = await verify(store)
        assert {(d.table, d.key, d.kind) for d in report.differences} == {
            ("romancy_history", ("e-0",), "unreadable"),
            ("romancy_instances", ("e-1",), "differs"),
        }
        assert {d.detail for d in report.differences} == {None, "run 1: event 2 is missing, the next one is 3"}
        with pytest.raises(BrokenLogError, match="e-0"):
            await rebuild(store)
        assert same_rows(await all_rows(store, ["e-0"]), before)
        assert [d.key for d in (await verify(store)).differences] == [("e-0",)]
        assert await rebuild(store, [each for each in plans if each != "e-0"]) == len(plans) - 1


async def test_earlier_runs_count(sqlite_db: str, tmp_path: Path) -> None:
    """The instance's row is the last run's; activities and timers are those of all."""
    app = make_app(sqlite_db, tmp_path)
    await filled(app, 10, instances=0)
    async with opened(app) as store:
        before = await all_rows(store, ["e-0"])
        await execute(
            store,
            "INSERT INTO romancy_history SELECT instance_id, 2, seq, at_us, kind, ref, attrs, payload"
            " FROM romancy_history WHERE instance_id = 'e-0'",
        )
        assert {(d.table, d.key[1:], d.kind) for d in (await verify(store)).differences} == {
            ("romancy_instances", (), "differs"),
            *(("romancy_activities", (2, row.activity_id), "missing") for row in before[1]),
        }
        assert await rebuild(store, ["e-0"]) == 1
        [instance], activities, _ = await all_rows(store, ["e-0"])
        assert instance == replace(before[0][0], run=2)
        assert [(row.run, row.activity_id) for row in activities] == [
            (run, row.activity_id) for run in (1, 2) for row in before[1]
        ]
        assert (await verify(store)).clean
        assert (await verify(store, ["e-0"])).clean


async def test_unknown_ids_and_a_database_without_an_app(sqlite_db: str, tmp_path: Path) -> None:
    app = make_app(sqlite_db, tmp_path)
    async with opened(app) as store:
        await store.migrate()
        with pytest.raises(ConfigurationError, match="no engine was ever set up"):
            await verify(store)
        await store.prepare("shop", 4)
        assert await verify(store) == Report(0, 0, ())
        assert await verify(store, ["nobody"]) == Report(0, 0, ())
        assert await rebuild(store, ["nobody"]) == 0


async def test_verify_stops_at_its_limit(sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "DIFFERENCES_LIMIT", 5)
    app = make_app(sqlite_db, tmp_path)
    await filled(app, 7, instances=10)
    async with opened(app) as store:
        await execute(store, "DELETE FROM romancy_activities")
        report = await verify(store)
        assert (len(report.differences), report.complete, report.clean) == (5, False, False)


# -- beside a working engine -----------------------------------------------------------------------------------------
@asynccontextmanager
async def kept_busy(app: App) -> AsyncIterator[list[str]]:
    """Instances begin and end all the time; yields the ids so far. At the end all have ended."""
    enough = asyncio.Event()
    ids: list[str] = []
    workflow: Any = app.registry.workflows["plan"]
    steps = [["step", 1], ["sleep", 0.02], ["both", 1], ["raced", 0.01], ["step", 0]]

    async def feed() -> None:
        while not enough.is_set():
            handles = []
            for number in range(len(ids), len(ids) + 10):
                handles.append(await app.start(workflow, steps, instance_id=f"b-{number}"))
                ids.append(f"b-{number}")
            await asyncio.gather(*(handle.result(timeout=120) for handle in handles))

    async def begun() -> bool:
        return bool((await app.list_instances(limit=1)).instances)

    feeding = asyncio.create_task(feed())
    await eventually(begun, deadline_s=120)
    try:
        yield ids
    finally:
        enough.set()
        await feeding


async def test_verify_is_clean_while_the_engine_works(url: str, tmp_path: Path) -> None:
    app = make_app(url, tmp_path)
    async with app, opened(app) as store:
        async with kept_busy(app) as ids:
            moving = 0

            async def clean_and_moving() -> bool:
                report = await verify(store)
                if not report.clean:
                    raise RuntimeError(f"{report.differences} {report.unsettled}")
                nonlocal moving
                moving += any(row.finished_us is None for row in (await store.projected(ids))[0])
                return moving >= 5

            await eventually(clean_and_moving, deadline_s=120)
        report = await verify(store)
        assert (report.clean, report.instances) == (True, len(ids))


async def test_an_instance_that_moves_between_two_readings_is_read_again(sqlite_db: str, tmp_path: Path) -> None:
    """The log grows between the reading of the log and that of the rows, as often as it likes up to the limit."""
    app = make_app(sqlite_db, tmp_path)
    await filled(app, 8, instances=0)

    class Moving(SqlStore):
        moves = 0

        async def projected(self, ids: Any) -> Any:
            instances, activities, timers = await super().projected(ids)
            if "e-2" not in ids or self.moves == 0:
                return instances, activities, timers
            self.moves -= 1
            [row] = [row for row in instances if row.instance_id == "e-2"]
            moved = replace(row, seq=row.seq + 1)
            await execute(
                self,
                "INSERT INTO romancy_history (instance_id, run, seq, at_us, kind, ref, attrs)"
                " VALUES ('e-2', 1, :seq, :at, 'event.published', 'published:1', '{}')",
                seq=moved.seq,
                at=row.updated_us,
            )
            await execute(self, "UPDATE romancy_instances SET seq = :seq WHERE instance_id = 'e-2'", seq=moved.seq)
            return [moved if each is row else each for each in instances], activities, timers

    store = Moving(sqlite_db)
    await store.open()
    try:
        store.moves = audit.READINGS_LIMIT - 1
        assert (await verify(store)).clean
        assert store.moves == 0
        store.moves = audit.READINGS_LIMIT + 5
        report = await verify(store)
        assert (report.unsettled, report.differences, report.clean) == (("e-2",), (), False)
        store.moves = 0
        assert (await verify(store)).clean
    finally:
        await store.close()


async def test_rebuild_beside_a_working_engine_loses_nothing(url: str, tmp_path: Path) -> None:
    app = make_app(url, tmp_path)
    async with app, opened(app) as store:
        async with kept_busy(app) as ids:
            for _ in range(5):
                await execute(store, "DELETE FROM romancy_activities")
                assert await rebuild(store)
                report = await verify(store)
                assert report.clean, report.differences
        report = await verify(store)
        assert (report.clean, report.instances) == (True, len(ids))


async def test_rebuild_wakes_timers_that_were_lost(sqlite_db: str, tmp_path: Path) -> None:
    """A lost timer row means an instance that never wakes; made anew, the next owner finds it."""
    app = make_app(sqlite_db, tmp_path)
    workflow: Any = app.registry.workflows["plan"]
    async with app, opened(app) as store:
        await app.start(workflow, [["sleep", 2]], instance_id="t")
        await eventually(lambda: _open_timers(store))
    async with opened(app) as store:
        assert await _open_timers(store), "the timer fired before it could be lost"
        await execute(store, "DELETE FROM romancy_timers")
        assert await rebuild(store, ["t"]) == 1
    async with app:
        assert await app.handle("t").result(timeout=120) == []


async def _open_timers(store: SqlStore) -> bool:
    return bool((await store.projected(["t"]))[2])


async def test_an_engine_that_takes_over_in_the_middle_is_fenced_again(sqlite_db: str, tmp_path: Path) -> None:
    app = make_app(sqlite_db, tmp_path)
    plans = await filled(app, 9, instances=3)

    class Contested(SqlStore):
        """Whenever rebuild has read the log, somebody takes the partitions over."""

        rivals = 0

        async def _rival(self) -> None:
            if self.rivals:
                self.rivals -= 1
                await self.take_over(range(4), "a rival")

        async def scan_histories(self, page_instances: int = 500) -> AsyncIterator[Any]:
            async for page in super().scan_histories(page_instances):
                await self._rival()
                yield page

        async def whole_histories(self, ids: Sequence[str]) -> Any:
            await self._rival()
            return await super().whole_histories(ids)

    store = Contested(sqlite_db)
    await store.open()
    try:
        await execute(store, "DELETE FROM romancy_instances")
        store.rivals = 3
        assert await rebuild(store) == len(plans)
        assert store.rivals == 0
        assert (await verify(store)).clean
        await execute(store, "DELETE FROM romancy_instances")
        store.rivals = 1_000
        with pytest.raises(FencedError, match="took its partitions back"):
            await rebuild(store)
        assert not (await store.projected(list(plans)))[0], "rows were written by somebody who was fenced"
    finally:
        await store.close()


async def test_rebuild_is_no_sign_that_an_owner_died(sqlite_db: str, tmp_path: Path) -> None:
    """An owner that is fenced in the middle of an input did not die of it."""
    app = make_app(sqlite_db, tmp_path)
    await filled(app, 11, instances=0)
    async with opened(app) as store:
        for _ in range(3):
            epochs = await store.take_over(range(4), "an engine")
        for part, epoch in epochs.items():
            await store.mark_suspect(part, epoch, "shop.commands/0/1")
        assert await rebuild(store)
        await store.take_over(range(4), "an engine")
        assert {(each.suspect, each.stalls) for each in await store.snapshot(range(4))} <= {(None, 0), (None, 1)}


# -- JSON by value ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ('{"a": 1, "b": [2, 3]}', '{"b":[2,3],"a":1}', True),
        ("1.0", "1", True),
        ("1.10", "1.1", True),
        ("1e2", "100", True),
        ("-0.0", "0", True),
        ("12345678901234567890123", "12345678901234567890124", False),
        ("0.1", "0.1000000000000000055511151231257827", False),
        ("1e400", "1e401", False),
        ("1", "true", False),
        ("0", "false", False),
        ("null", "false", False),
        ("null", '"null"', False),
        ('"\\u00e9"', '"é"', True),
        ('"a"', '"a "', False),
        ("[1, 2]", "[2, 1]", False),
        ("[]", "{}", False),
        ('{"a": 1, "a": 2}', '{"a": 2}', True),
        ("1e9999999999999999999", "1e9999999999999999999", True),
        ("1e9999999999999999999", "1e9999999999999999998", False),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000, True),
    ],
)
def test_json_is_compared_by_value(left: str, right: str, same: bool) -> None:
    compare: Callable[[bytes, bytes], bool] = json_equal
    assert compare(left.encode(), right.encode()) is same
    assert compare(right.encode(), left.encode()) is same
