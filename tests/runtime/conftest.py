"""A bench for each kind of database, on the embedded broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.tidying import no_task_is_left
from tests.runtime.worker_kit import Bench, bench_on, embedded

__all__ = ["bench", "no_task_is_left"]


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """On every database."""
    url = request.getfixturevalue(f"{request.param}_db")
    async with bench_on(embedded(tmp_path), url) as made:
        yield made


@pytest.fixture
async def sqlite_bench(sqlite_db: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """For what does not depend on the database."""
    async with bench_on(embedded(tmp_path), sqlite_db) as made:
        yield made
