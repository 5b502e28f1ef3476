"""Fixtures for the real servers and for databases of one's own, and the account of what could not be tested here.

A server is started by the first test that needs it. Those that ran already stay; those that this session started stop
with it.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import ServiceMissing, ensure_service, fresh_mariadb, fresh_postgres
from tests.support.servers import release_services

SEED_VARIABLE = "ROMANCY_TEST_SEED"
"""Chance for the tests that want some: a number, the same in all processes of a run."""
GROUPS = {
    "tests/chaos/test_outages.py": "outages",
    "tests/chaos/test_killed_processes.py": "outages",
    "tests/chaos/test_left_to_send.py": "outages",
    "tests/broker/test_kafka_chaos.py": "outages",
    "tests/test_services.py": "servers",
    "tests/test_acceptance.py": "servers",
}
"""Tests that wait more than they work: for processes, servers and timeouts. Where several processes run the tests,
those of a group are run one after the other, and first, while others keep the machine busy."""
SHORT = ("tests/engine/", "tests/store/", "tests/wire/")
ADDRESS = re.compile(" at 0x[0-9a-f]")

# How fast this machine is at the moment is no property of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

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


def pytest_configure() -> None:
    # All processes of a run have to collect the same tests, by name.
    os.environ.setdefault(SEED_VARIABLE, str(random.randrange(1_000_000)))
    os.environ.setdefault("ROMANCY_SERVICES_BRIEF", "1")  # servers that start sooner


def pytest_itemcollected(item: pytest.Item) -> None:
    if ADDRESS.search(item.name):
        raise pytest.UsageError(f"{item.nodeid}: the name must be the same in every process that runs tests")
    if group := GROUPS.get(item.nodeid.partition("::")[0]):
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """The short ones last: they keep no process waiting for the end of another."""
    if item.get_closest_marker("xdist_group"):
        return 0
    return 2 if item.nodeid.startswith(SHORT) else 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if asked:
        release_services()
    if hasattr(session.config, "workeroutput"):  # one of several processes: its account goes to the first one
        session.config.workeroutput["missing"] = missing


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    missing.update(getattr(node, "workeroutput", {}).get("missing", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    _tell_unsteady(terminalreporter)
    if not missing:
        return
    skipped: list[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    terminalreporter.section("NOT TESTED HERE")
    for name, reason in sorted(missing.items()):
        cost = sorted(report.nodeid for report in skipped if _skip_text(name) in str(report.longrepr))
        terminalreporter.write_line(f"{reason}\n  this cost {len(cost)} tests:")
        for nodeid in cost:
            terminalreporter.write_line(f"    {nodeid}")


def _tell_unsteady(terminalreporter: pytest.TerminalReporter) -> None:
    """The whole suite runs a test that fails a second time: several hundred tests depend on when real servers answer
    beside others on two cores. One that passes then is a fault all the same, of the test or of the product, and is
    told here with what it printed."""
    again: list[pytest.TestReport] = terminalreporter.stats.get("rerun", [])
    if not again:
        return
    terminalreporter.section("FAILED AT FIRST: each is a fault to be found")
    for report in again:
        terminalreporter.write_line(f"{report.nodeid} ({report.when})\n{report.longreprtext}\n")
