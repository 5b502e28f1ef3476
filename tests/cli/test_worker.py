"""`romancy worker` as a process: signals, kills, failures, roles."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from romancy_stream.cli.worker import OneLine
from tests.cli.conftest import Project

DEADLINE_S = 120  # two cores, several test runs at once
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+: .*")


class Worker:
    """A `romancy worker` process whose stderr is read as it comes."""

    def __init__(self, project: Project, *options: str) -> None:
        self.process = project.spawn("worker", "@", *options)
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):  # closed at the end of the test
            for line in self.process.stderr:
                self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, part: str) -> str:
        """The first line, from where we are, that contains `part`."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {part!r} in {self.lines}") from None
            if line is None:
                raise AssertionError(f"ended without {part!r}: {self.lines}")
            self.lines.append(line)
            if part in line:
                return line

    def until_true(self, predicate: Callable[[], bool], what: str) -> None:
        """While the process runs."""
        deadline = time.monotonic() + DEADLINE_S
        while not predicate():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"not {what}: {self.process.poll()} {self.lines} {list(self._queue.queue)}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        while (line := self._queue.get(timeout=DEADLINE_S)) is not None:
            self.lines.append(line)
        return code


def status(project: Project, instance_id: str) -> str | None:
    answer = project.run("get", "@", instance_id, "--json", ok=False)
    return str(answer.json["status"]) if answer.code == 0 else None


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_works_until_a_signal_and_leaves_in_order(project: Project, loop: str, number: signal.Signals) -> None:
    project.run("init", "@")
    project.run("start", "@", "checkout", "--input", '{"id": "o1", "total": 1}', "--id", "one")
    worker = Worker(project, "--loop", loop)
    worker.until("app shop runs as engine and worker, queues: default, slow")
    worker.until_true(lambda: status(project, "one") == "completed", "the instance is done")
    worker.send(number)
    assert worker.wait() == 0
    assert worker.lines[-1].endswith("INFO romancy_stream.worker: stopped")
    assert all(RECORD.fullmatch(line) for line in worker.lines), worker.lines
    assert project.run("verify", "@").code == 0


def test_kill_and_restart_lose_nothing(project: Project) -> None:
    worker = Worker(project)
    worker.until("took over partitions")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    for number in range(8):
        project.run(
            "start", "@", "checkout", "--input", json.dumps({"id": f"o{number}", "total": 1}), "--id", f"c{number}"
        )
    project.run("start", "@", "nap", "--input", "3", "--id", "n")
    killed = Worker(project)
    killed.until_true(lambda: status(project, "n") == "waiting_for_timer", "the nap began")
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert project.run("verify", "@").code == 0
    again = Worker(project, "--no-init")
    again.until_true(lambda: status(project, "n") == "completed", "the nap ended")
    again.until_true(lambda: all(status(project, f"c{n}") == "completed" for n in range(8)), "all are done")
    again.send(signal.SIGTERM)
    assert again.wait() == 0
    assert project.run("verify", "@").code == 0


def test_a_second_signal_leaves_at_once(project: Project) -> None:
    project.run("init", "@")
    project.run("start", "@", "hangs", "--id", "h")
    worker = Worker(project)
    worker.until_true((project.folder / "hanging").exists, "the activity runs")
    worker.send(signal.SIGTERM)
    worker.until("leaving: waiting for what is under way")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 128 + signal.SIGTERM
    assert worker.lines[-1].endswith("SIGTERM again: leaving at once")
    assert status(project, "h") == "running"


def test_a_signal_during_the_start(project: Project) -> None:
    """Kafka takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_S)
        port = silent.getsockname()[1]
        source = project.folder / f"{project.module}.py"
        source.write_text(source.read_text().replace('os.environ.get("TEST_BROKER")', f'"kafka://127.0.0.1:{port}"'))
        worker = Worker(project)
        connection, _ = silent.accept()
        with connection:
            worker.send(signal.SIGTERM)
            assert worker.wait() == 0
    assert worker.lines[-1].endswith("stopped before it was started")


def test_reading_beside_it_and_what_needs_the_broker(project: Project) -> None:
    project.run("init", "@")
    project.run("start", "@", "nap", "--input", "600", "--id", "n")
    worker = Worker(project)
    worker.until_true(lambda: status(project, "n") == "waiting_for_timer", "the nap began")
    assert "waiting_for_timer" in project.run("list", "@").out
    assert "timer.started" in project.run("history", "@", "n").out
    assert project.run("dlq", "list", "@", "--json").json == []
    assert project.run("verify", "@").out == "1 instances, 2 rows compared: no differences\n"
    for command, instead in (
        (["start", "@", "nap", "--input", "1"], "app.start(...)"),
        (["start", "@", "nap", "--input", "1", "--wait"], "app.start(...)"),
        (["send", "@", "x"], "app.send_event(...)"),
        (["dlq", "replay", "@", "x/0/0"], "app.replay_dead_letter(...)"),
    ):
        answer = project.run(*command, ok=False)
        assert answer.code == 1
        assert f"(pid {worker.process.pid})" in answer.err
        assert instead in answer.err
        assert "kafka://" in answer.err
        assert answer.err.count("\n") == 1
    second = Worker(project)
    assert second.wait() == 1
    assert "[embedded_broker_in_use]" in second.lines[-1]
    doctor = project.run("doctor", "@", "--json")
    [broker] = [each for each in doctor.json if each["subject"] == "broker"]
    assert broker["status"] == "warn"

    # A running engine is fenced, and comes back by itself with the rows that it finds.
    assert project.run("rebuild", "@").out == "1 instances made anew from the log\n"
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_failure_for_good_ends_it(project: Project) -> None:
    project.run("init", "@")
    project.run("start", "@", "nap", "--input", "2", "--id", "n")
    worker = Worker(project)
    worker.until_true(lambda: status(project, "n") == "waiting_for_timer", "the nap began")
    with contextlib.closing(sqlite3.connect(project.folder / ".romancy/shop/state.db")) as database, database:
        database.execute("DELETE FROM romancy_partitions")
    assert worker.wait() == 1
    assert worker.lines[-1].startswith("error: the database has no partition")
    assert worker.lines[-1].endswith("[partition_count]")
    assert "Traceback" not in "".join(worker.lines)


@pytest.mark.parametrize(
    ("prepare", "options", "code", "said"),
    [
        ([], ["--no-init"], 1, "romancy init"),
        ([["migrate", "@"]], ["--no-init"], 1, "romancy topics create"),
        ([], ["--roles", "engine,cook"], 2, "there are engine, worker"),
        ([], ["--roles", ""], 2, "there are engine, worker"),
        ([], ["--queues", "default,fast"], 2, "no queue fast; it has default, slow"),
        ([], ["--log-level", "loud"], 2, "loud"),
    ],
)
def test_what_cannot_be_started(
    project: Project, prepare: list[list[str]], options: list[str], code: int, said: str
) -> None:
    for command in prepare:
        project.run(*command)
    worker = Worker(project, *options)
    assert worker.wait() == code
    assert said in "\n".join(worker.lines)
    assert "Traceback" not in "\n".join(worker.lines)


def test_topics_of_all_queues_are_made(project: Project) -> None:
    """An engine sends to queues that other processes serve."""
    worker = Worker(project, "--queues", "default")
    worker.until("queues: default")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert project.run("topics", "list", "@").code == 0


@pytest.mark.kafka
@pytest.mark.postgres
def test_two_processes_on_kafka_and_postgresql(
    project: Project, kafka_bootstrap: str, postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = project.folder / f"{project.module}.py"
    source.write_text(source.read_text().replace('App("shop"', f'App("t{uuid.uuid4().hex[:12]}"'))
    monkeypatch.setenv("TEST_BROKER", f"kafka://{kafka_bootstrap}")
    monkeypatch.setenv("TEST_DATABASE", postgres_db)
    engine = Worker(project, "--roles", "engine")
    engine.until("took over partitions")
    activities = Worker(project, "--roles", "worker", "--queues", "default", "--no-init")
    activities.until("runs as worker, queues: default")
    order = '{"id": "o1", "total": 1}'
    answer = project.run("start", "@", "checkout", "--input", order, "--id", "k", "--wait", "--timeout", "60")
    assert json.loads(answer.out) == {"receipt": "receipt of o1"}
    taken = project.run("start", "@", "checkout", "--input", order, "--id", "k", "--on-conflict", "fail", ok=False)
    assert (taken.code, taken.err) == (1, "error: instance k exists [instance_exists]\n")
    assert [each["attempt"] for each in project.run("get", "@", "k", "--json").json["activities"]] == [2]
    assert project.run("list", "@", "--find", "id=o1", "--json").json["instances"][0]["instance_id"] == "k"
    assert len(project.run("history", "@", "k", "--json").json) == 7
    assert project.run("verify", "@").out == "1 instances, 2 rows compared: no differences\n"
    assert project.run("rebuild", "@").out == "1 instances made anew from the log\n"
    assert project.run("doctor", "@").code == 0
    for process in (activities, engine):
        process.send(signal.SIGTERM)
        assert process.wait() == 0, process.lines


def test_a_traceback_is_one_line() -> None:
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it\r\nfailed", (), None)
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record.exc_info = sys.exc_info()
    shown = OneLine("%(message)s").format(record)
    assert "\n" not in shown
    assert shown.startswith("it\\r\\nfailed\\nTraceback")
    assert shown.endswith("RuntimeError: two\\nlines")


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("romancy")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert done.stdout.strip()
