"""Starts, signals and ends the processes of a test, and a private set of servers that a test may kill. Whatever a test
does, everything is ended with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import eventually
from tests.support.servers import COMMAND_TIMEOUT_S, EXIT_UNAVAILABLE, KEYS, TOOL

ROOT = Path(__file__).resolve().parents[2]
STOP_LIMIT_S = 120.0
"""From SIGTERM to the end: attempts under way get 10 s, everything after them a few more, on a busy machine."""
ROMANCY = "from romancy_stream.cli import main; main()"


class Process:
    """A Python program with its output in a file."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-W", "error", *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def count(self, words: str) -> int:
        """Lines that have them."""
        return sum(words in line for line in self.lines)

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.ended()

    async def ended(self, limit_s: float = STOP_LIMIT_S) -> int:
        """The exit code."""
        await eventually(lambda: not self.alive, deadline_s=limit_s, message=f"{self.name} ends")
        return self._popen.wait()

    def end_anyway(self) -> None:
        if self.alive:
            self._popen.kill()
        self._popen.wait()


class Processes:
    """Of one app."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment = environment
        self.folder = folder
        self.all: list[Process] = []

    def worker(self, name: str) -> Process:
        """Engine and activities."""
        return self._start(name, ["-c", ROMANCY, "worker", "tests.chaos.served:app"])

    def alone(self, name: str, count: int) -> Process:
        """Engine, activities and the client: see `program`."""
        return self._start(name, ["-m", "tests.chaos.program", str(count)])

    def _start(self, name: str, arguments: list[str]) -> Process:
        process = Process(name, arguments, self.environment, self.folder)
        self.all.append(process)
        return process

    async def stop(self) -> None:
        """As an operator would; each must end by itself and well."""
        running = [process for process in self.all if process.alive]
        for process in running:
            process.send(signal.SIGTERM)
        codes = {process.name: await process.ended() for process in running}
        assert set(codes.values()) <= {0}, codes

    def end_anyway(self) -> None:
        for process in self.all:
            process.end_anyway()

    def report(self) -> str:
        """The ends of the logs, for a test that failed."""
        return "\n".join(line for each in self.all for line in [f"--- {each.name} ({each.pid})", *each.lines[-40:]])


class PrivateServers:
    """Servers that nobody else uses."""

    def __init__(self, folder: Path) -> None:
        self._env = {**os.environ, "ROMANCY_SERVICES_DIR": str(folder), "ROMANCY_SERVICES_FOR_PID": str(os.getpid())}

    def start(self, name: str) -> str:
        """Returns its address or URL, which stays the same."""
        self._command("start", name)
        found = dict(line.split("=", 1) for line in self._command("env").splitlines())
        return found[KEYS[name]]

    def kill(self, name: str) -> None:
        self._command("kill", name)

    def pause(self, name: str) -> None:
        self._command("pause", name)

    def resume(self, name: str) -> None:
        self._command("resume", name)

    def clean(self) -> None:
        self._command("stop", "--clean")

    def _command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(TOOL), *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=self._env,
        )
        if done.returncode == EXIT_UNAVAILABLE:
            pytest.skip(f"{arguments[-1]} cannot be had on this machine")
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def restart(self, name: str) -> None:
        """After `kill`."""
        await asyncio.to_thread(self.start, name)
