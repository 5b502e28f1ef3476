"""A project folder with a small app in it, and ways to run commands there: in this process, and as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner

from romancy_stream.app import App
from romancy_stream.cli import cli

T = TypeVar("T")

SOURCE = """
import asyncio
import os
from pathlib import Path

from pydantic import BaseModel

from romancy_stream import ActivityContext, RetryPolicy, TerminalError, WorkflowContext
from romancy_stream.app import App

app = App("shop", broker=os.environ.get("TEST_BROKER"), database=os.environ.get("TEST_DATABASE"), partitions=4)


class Order(BaseModel):
    id: str
    total: int = 0


@app.activity(retry=RetryPolicy(max_attempts=3, initial_interval=0.01))
async def charge(ctx: ActivityContext, order_id: str, fails: int) -> str:
    if ctx.info.attempt <= fails:
        raise RuntimeError("the bank\\x1b[31m is closed")
    return f"receipt of {order_id}"


@app.activity(queue="slow")
async def hang() -> None:
    Path("hanging").touch()
    await asyncio.sleep(600)


@app.activity
async def refuse() -> None:
    raise TerminalError("no [bold]money[/bold]")


@app.workflow
async def checkout(ctx: WorkflowContext, order: Order) -> dict[str, str]:
    receipt = await charge(order.id, order.total)
    ctx.publish_event(type="order.done", data={"id": order.id})
    return {"receipt": receipt}


@app.workflow
async def nap(ctx: WorkflowContext, seconds: float) -> str:
    await ctx.sleep(seconds)
    return "slept"


@app.workflow
async def hangs(ctx: WorkflowContext) -> None:
    await hang()


@app.workflow
async def refused(ctx: WorkflowContext) -> None:
    await refuse()


@app.workflow
async def echo(ctx: WorkflowContext, value: object) -> object:
    return value
"""


@dataclass
class Answer:
    """Of a command: exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Project:
    """`target` is what commands take: MODULE:app, a module of a name of its own, so that tests do not share apps."""

    folder: Path
    module: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"{self.module}:app"

    @property
    def app(self) -> App:
        found = import_module(self.module).app
        assert isinstance(found, App)
        return found

    def run(self, *arguments: str, input: str | None = None, ok: bool = True) -> Answer:
        """In this process. The second argument of a command is the app: "@" stands for it."""
        given = [self.target if argument == "@" else argument for argument in arguments]
        # In a thread of its own, so that async tests may call it too.
        with ThreadPoolExecutor(max_workers=1) as pool:
            result = pool.submit(CliRunner().invoke, cli, given, input=input).result()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0 or not ok, result.stderr
        return Answer(result.exit_code, result.stdout, result.stderr)

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """As a process of its own, ended with the test."""
        given = [self.target if argument == "@" else argument for argument in arguments]
        code = "from romancy_stream.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, "NO_COLOR": "1"},
        )
        self.processes.append(process)
        return process

    def working(self, what: Callable[[App], Coroutine[Any, Any, T]]) -> T:
        """The app runs in this process while `what` does."""

        async def entered() -> T:
            async with self.app as app:
                return await what(app)

        return asyncio.run(entered())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    module = f"shop_{uuid.uuid4().hex[:12]}"
    (tmp_path / f"{module}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("ROMANCY_BROKER", "ROMANCY_DATABASE", "ROMANCY_NAMESPACE", "ROMANCY_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    made = Project(tmp_path, module)
    yield made
    for process in made.processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate()
    for name in [name for name in sys.modules if name == module]:
        del sys.modules[name]
