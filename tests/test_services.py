"""tools/services on a state directory of its own, so that servers which somebody uses are left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.servers import EXIT_UNAVAILABLE, TOOL

REPO = TOOL.parents[1]
COMMAND_TIMEOUT_S = 270  # below the limit of one test
NO_PROGRAMS = {"PATH": "/nonexistent", "KAFKA_HOME": ""}


@dataclass(frozen=True, slots=True)
class Tool:
    directory: Path

    def environment(self, **extra: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if key != "ROMANCY_SERVICES_FOR_PID"}
        return {**inherited, "ROMANCY_SERVICES_DIR": str(self.directory), **extra}

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(TOOL), *arguments]
        return subprocess.Popen(
            command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TOOL), *arguments]
        env = self.environment(**extra)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)

    def start(self, name: str, *arguments: str) -> dict[str, Any]:
        done = self.run("start", name, *arguments)
        if done.returncode == EXIT_UNAVAILABLE:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return self.look(name)

    def look(self, name: str) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.run("status", "--json").stdout)[name]
        return facts

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    tool = Tool(tmp_path_factory.mktemp("services"))
    yield tool
    tool.ok("stop", "--clean")


async def _fetch(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_start_is_idempotent_and_shown(tool: Tool) -> None:
    first = tool.start("postgres")
    assert first["condition"] == "running"
    assert tool.start("postgres")["pid"] == first["pid"]
    assert f"POSTGRES_URL={first['url']}" in tool.ok("env").splitlines()
    assert json.loads(tool.ok("env", "--json"))["ROMANCY_DATABASE"] == first["url"]
    assert first["url"] in tool.ok("status", "postgres")
    assert await _fetch(first["url"], "SHOW fsync") == "on"


def test_parallel_starts_agree_on_one_server(tool: Tool) -> None:
    tool.ok("stop", "postgres")
    starts = [tool.popen("start", "postgres") for _ in range(3)]
    said = [start.communicate(timeout=COMMAND_TIMEOUT_S)[0] for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0], said
    assert len(set(said)) == 1


async def test_a_killed_server_comes_back_with_its_data_and_its_port(tool: Tool) -> None:
    before = tool.start("postgres")
    await _fetch(before["url"], "CREATE TABLE IF NOT EXISTS kept (x int)")
    tool.ok("kill", "postgres")
    assert tool.look("postgres")["condition"] == "dead"
    after = tool.start("postgres")
    assert after["url"] == before["url"]
    assert after["pid"] != before["pid"]
    assert await _fetch(after["url"], "SELECT count(*) FROM kept") == 0


async def test_a_paused_server_is_frozen_until_resumed(tool: Tool) -> None:
    server = tool.start("postgres")
    tool.ok("pause", "postgres")
    assert tool.look("postgres")["condition"] == "paused"
    tool.ok("resume", "postgres")
    assert tool.look("postgres")["condition"] == "running"
    assert await _fetch(server["url"], "SELECT 1") == 1


async def test_stop_ends_the_server(tool: Tool) -> None:
    server = tool.start("postgres")
    tool.ok("stop", "postgres")
    assert tool.look("postgres")["condition"] == "stopped"
    with pytest.raises(ConnectionRefusedError):
        await _fetch(server["url"], "SELECT 1")
    assert tool.run("kill", "postgres").returncode == 1


def test_a_server_lives_as_long_as_a_session_needs_it(tool: Tool) -> None:
    tool.ok("stop", "postgres")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        mine, theirs = str(os.getpid()), str(other.pid)
        tool.start("postgres", "--for-pid", mine)
        tool.start("postgres", "--for-pid", theirs)
        tool.ok("release", "--for-pid", mine)
        assert tool.look("postgres")["condition"] == "running"
        tool.ok("release", "--for-pid", theirs)
        assert tool.look("postgres")["condition"] == "stopped"


def test_a_server_that_a_person_started_outlives_sessions(tool: Tool) -> None:
    tool.start("postgres")
    tool.start("postgres", "--for-pid", str(os.getpid()))
    tool.ok("release", "--for-pid", str(os.getpid()))
    assert tool.look("postgres")["condition"] == "running"


def test_what_cannot_be_had_is_named_and_stops_nothing_else(tool: Tool) -> None:
    if tool.run("fetch", "postgres", **NO_PROGRAMS).returncode:
        pytest.skip("PostgreSQL is found by PATH alone here, so the test cannot hide the rest")
    tool.ok("stop", "kafka39", "postgres")
    done = tool.run("start", "kafka39", "postgres", **NO_PROGRAMS)
    assert done.returncode == EXIT_UNAVAILABLE
    assert "java is not installed" in done.stderr
    assert tool.look("postgres")["condition"] == "running"
    missing = tool.look("kafka39")
    assert (missing["condition"], missing["pid"]) == ("failed", 0)
    assert "java is not installed" in missing["reason"]
    assert "java is not installed" in tool.ok("status")


async def _topics(bootstrap: str, create: str | None = None) -> list[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        if create:
            await admin.create_topics([NewTopic(create, num_partitions=2, replication_factor=1)])
        return list(await admin.list_topics())
    finally:
        await admin.close()


@pytest.mark.kafka
async def test_kafka_starts_and_survives_a_kill_with_its_topics(tool: Tool) -> None:
    server = tool.start("kafka")
    assert server["version"].startswith("4.")
    assert "orders" in await _topics(server["url"], create="orders")
    tool.ok("kill", "kafka")
    again = tool.start("kafka")
    assert again["url"] == server["url"]
    assert "orders" in await _topics(again["url"])
    tool.ok("stop", "kafka")


SESSION = """
def test_database(postgres_db):
    assert postgres_db.startswith("postgresql://romancy@127.0.0.1:")

def test_broker(kafka39_bootstrap):
    raise AssertionError("there is no broker to get here with")
"""


def test_a_session_tells_what_it_could_not_test_and_stops_what_it_started(tool: Tool, tmp_path: Path) -> None:
    if tool.run("fetch", "postgres", **NO_PROGRAMS).returncode:
        pytest.skip("PostgreSQL is found by PATH alone here, so the test cannot hide the rest")
    tool.ok("stop")
    (tmp_path / "test_session.py").write_text(SESSION)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    env = tool.environment(**NO_PROGRAMS)
    done = subprocess.run(
        command, env=env, cwd=REPO, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    block = done.stdout.partition("NOT TESTED HERE")[2]
    assert "java is not installed" in block
    assert "this cost 1 tests" in block
    assert "test_session.py::test_broker" in block
    assert tool.look("postgres")["condition"] == "stopped"
