"""Fixtures for the real servers and for databases of one's own, and the account of what could not be tested here.

A server is started by the first test that needs it. Those that ran already stay; those that this session started stop
with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ServiceMissing, ensure_service, fresh_mariadb, fresh_postgres
from tests.support.servers import release_services

asked: set[str] = set()
missing: dict[str, str] = {}  # service -> reason


def _server(name: str) -> str:
    asked.add(name)
    try:
        return ensure_service(name)
    except ServiceMissing as error:
        missing[name] = str(error)
        pytest.skip(_skip_text(name))


def _skip_text(name: str) -> str:
    return f"{name} cannot be had on this machine"


@pytest.fixture(scope="session")
def kafka_bootstrap() -> str:
    """host:port of the newest Kafka."""
    return _server("kafka")


@pytest.fixture(scope="session")
def kafka39_bootstrap() -> str:
    """host:port of a Kafka 3.9."""
    return _server("kafka39")


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The server, with its database `romancy`: for tests that need no tables of their own."""
    return _server("postgres")


@pytest.fixture(scope="session")
def mariadb_url() -> str:
    """The server, with its database `romancy`: for tests that need no tables of their own."""
    return _server("mariadb")


@pytest.fixture
def postgres_db(postgres_url: str) -> Iterator[str]:
    with fresh_postgres(postgres_url) as url:
        yield url


@pytest.fixture
def mariadb_db(mariadb_url: str) -> Iterator[str]:
    with fresh_mariadb(mariadb_url) as url:
        yield url


@pytest.fixture
def sqlite_db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'romancy.db'}"


def pytest_sessionfinish() -> None:
    if asked:
        release_services()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not missing:
        return
    skipped: list[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    terminalreporter.section("NOT TESTED HERE")
    for name, reason in sorted(missing.items()):
        cost = sorted(report.nodeid for report in skipped if _skip_text(name) in str(report.longrepr))
        terminalreporter.write_line(f"{reason}\n  this cost {len(cost)} tests:")
        for nodeid in cost:
            terminalreporter.write_line(f"    {nodeid}")
