"""The walk through Kafka and PostgreSQL that the README describes, with the README's own commands: a worker as a
process, an event from kcat without a key, its completion read by kcat, its row read by psql; then kill -9, and on it
goes.

Only two things differ from what a reader types: the app has a namespace of its own, and a database of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from romancy_stream.engine.starts import derived_id
from tests import conftest
from tests.support import eventually, services_command
from tests.support.modules import REPO
from tests.support.servers import EXIT_UNAVAILABLE
from tests.support.snippets import Snippet, environment, shell, snippets

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(600)]

PATIENCE_S = 120  # a worker starts in two seconds and takes over from a dead one in ten; the machine may be busy
POLL_S = 0.5  # each look starts a program
COMPLETED = "romancy.workflow.completed"


@pytest.fixture(scope="module")
def blocks() -> dict[str, Snippet]:
    found = {each.mark.removeprefix("services "): each for each in snippets("README.md") if "services " in each.mark}
    assert list(found) == ["start", "worker", "send", "events", "table"]
    return found


@pytest.fixture(scope="module")
def programs() -> None:
    """kcat and psql."""
    done = services_command("ensure", "kcat")
    if done.returncode == EXIT_UNAVAILABLE:
        conftest.missing["kcat"] = done.stderr.strip()
        pytest.skip("kcat cannot be had on this machine")
    assert done.returncode == 0, done.stderr
    assert shutil.which("psql"), "PostgreSQL came without its client"


class Walk:
    """A reader in a folder with `examples/orders.py`, and the worker that the reader started."""

    def __init__(self, folder: Path, namespace: str, env: dict[str, str], blocks: dict[str, Snippet]) -> None:
        self.env = env
        self.worker: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._namespace = namespace
        self._blocks = blocks
        self._log = folder / "worker.log"

    def code(self, block: str) -> str:
        return re.sub(r"\borders\.(commands|events)\b", rf"{self._namespace}.\1", self._blocks[block].code)

    async def sh(self, code: str) -> str:
        done = await asyncio.to_thread(shell, code, self._folder, **self.env)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _spawn(self) -> None:
        command = ["bash", "-c", f"exec {self.code('worker')}"]
        with self._log.open("ab") as log:
            self.worker = subprocess.Popen(
                command, cwd=self._folder, env=environment() | self.env, stdout=log, stderr=log
            )

    async def start_worker(self) -> None:
        self._spawn()
        await self.until('kcat -L -b "$KAFKA_BOOTSTRAP" -t orders.commands', "with 8 partitions")

    async def until(self, code: str, *texts: str) -> str:
        """Runs it until it prints all of `texts`; what it printed then."""
        code = code.replace("orders.commands", f"{self._namespace}.commands")

        async def printed() -> str:
            assert self.worker is not None
            assert self.worker.poll() is None, f"the worker has ended:\n{self.log}"
            text = await self.sh(code)
            assert all(each in text for each in texts), text
            return text

        return await eventually(printed, PATIENCE_S, POLL_S, f"{code} shows {texts}")

    def end_worker(self, number: signal.Signals) -> int:
        assert self.worker is not None
        self.worker.send_signal(number)
        return self.worker.wait(PATIENCE_S)

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def folder(tmp_path: Path, namespace: str) -> Path:
    """The checkout, as far as the walk needs it."""
    (tmp_path / "examples").mkdir()
    source = (REPO / "examples" / "orders.py").read_text(encoding="utf-8")
    renamed = source.replace('App("orders")', f'App("{namespace}")')
    assert renamed != source
    (tmp_path / "examples" / "__init__.py").touch()
    (tmp_path / "examples" / "orders.py").write_text(renamed, encoding="utf-8")
    return tmp_path


@pytest.fixture
def namespace() -> str:
    return f"t{os.urandom(6).hex()}"


@pytest.fixture
def servers(kafka_bootstrap: str, postgres_db: str, blocks: dict[str, Snippet]) -> dict[str, str]:
    """What the README's first block leaves in the environment, with a fresh database in the place of the shared one."""
    done = shell(blocks["start"].code + "\nenv", REPO, ROMANCY_SERVICES_FOR_PID=str(os.getpid()))
    assert done.returncode == 0, done.stderr
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert told["KAFKA_BOOTSTRAP"] == kafka_bootstrap
    assert told["ROMANCY_BROKER"] == f"kafka://{kafka_bootstrap}"
    assert told["ROMANCY_DATABASE"].startswith("postgresql://")
    names = ("KAFKA_BOOTSTRAP", "ROMANCY_BROKER")
    return {name: told[name] for name in names} | {"ROMANCY_DATABASE": postgres_db}


@pytest.fixture
async def walk(
    folder: Path, namespace: str, servers: dict[str, str], blocks: dict[str, Snippet], programs: None
) -> AsyncIterator[Walk]:
    walk = Walk(folder, namespace, servers, blocks)
    yield walk
    if walk.worker is not None and walk.worker.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            walk.end_worker(signal.SIGTERM)
        walk.worker.kill()
        walk.worker.wait()


def completed(events: str, instance_id: str) -> tuple[set[str], set[str]]:
    """Ids and values of the completions of an instance, as kcat printed headers and value."""
    ids, values = set(), set()
    for record in events.strip().split("\n\n"):
        headers, _, value = record.partition("\n")
        if f"ce_type={COMPLETED}," in headers and f"ce_subject={instance_id}," in headers:
            ids.update(re.findall(r"ce_id=([^,]+)", headers))
            values.add(value)
    return ids, values


async def test_the_walk_of_the_readme(walk: Walk) -> None:
    await walk.start_worker()
    instance_id = derived_id("order_workflow", "/shop/web", "web-1001")
    await walk.sh(walk.code("send"))
    await walk.sh(walk.code("send"))  # as a producer does that had no answer
    events = await walk.until(walk.code("events"), COMPLETED, "ce_causationid=web-1001")
    ids, values = completed(events, instance_id)
    assert ids == {f"{instance_id}/1/8"}
    assert values == {'{"output":{"order_id":"o-42","status":"shipped","tracking":"TRACK-o-42"}}'}
    table = await walk.sh(walk.code("table"))
    assert instance_id in table
    assert "| completed |" in table
    assert "(1 row)" in table

    assert walk.end_worker(signal.SIGKILL) == -signal.SIGKILL
    await walk.sh(walk.code("send").replace("web-1001", "web-1002"))
    await walk.start_worker()
    events = await walk.until(walk.code("events"), "ce_causationid=web-1002")
    other = derived_id("order_workflow", "/shop/web", "web-1002")
    await walk.until(walk.code("events"), f"ce_id={other}/1/8")
    assert "(2 rows)" in await walk.sh(walk.code("table"))
    assert completed(await walk.sh(walk.code("events")), instance_id)[0] == ids

    assert walk.end_worker(signal.SIGTERM) == 0, walk.log
    assert "no differences" in await walk.sh("romancy verify examples.orders:app")
    assert "workflow.completed" in await walk.sh(f"romancy history examples.orders:app {instance_id}")
