"""The matrix {embedded, Kafka} x {SQLite, PostgreSQL, MariaDB}: every test of this folder runs in each cell. When a
test ends, its tables are compared with its log."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from romancy_stream import App
from romancy_stream.audit import verify

MakeApp = Callable[..., App]

CELLS = [
    pytest.param(broker, database, id=f"{broker}-{database}", marks=[getattr(pytest.mark, m) for m in marks])
    for broker, broker_marks in (("embedded", []), ("kafka", ["kafka"]))
    for database, database_marks in (("sqlite", []), ("postgres", ["postgres"]), ("mariadb", ["mariadb"]))
    for marks in [[*broker_marks, *database_marks]]
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker_kind" in metafunc.fixturenames:
        metafunc.parametrize(("broker_kind", "database_kind"), CELLS)


@pytest.fixture
def broker_url(broker_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if broker_kind == "kafka":
        return f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    return f"embedded://{tmp_path / 'log'}"


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(
        {"postgres": "postgres_db", "mariadb": "mariadb_db"}.get(database_kind, "sqlite_db")
    )
    return url


@pytest.fixture
async def make_app(broker_url: str, database_url: str) -> AsyncIterator[MakeApp]:
    """Apps on one namespace, as several versions or processes of one program would be."""
    name = f"t{uuid.uuid4().hex[:12]}"
    made: list[App] = []

    def make(**options: object) -> App:
        app = App(name, broker=broker_url, database=database_url, partitions=2, **options)  # type: ignore[arg-type]
        made.append(app)
        return app

    yield make
    if made:
        store = made[0].make_store()
        await store.open()
        try:
            report = await verify(store)
            assert report.clean, report
        finally:
            await store.close()
