"""Processes: start one that outlives us, tell whether it is still the same one, signal it with its children.

May start and signal processes; knows nothing about particular services.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import settings
from .errors import ServiceError

POLL_S = 0.05


def spawn(command: Sequence[str], log: Path, user: str | None = None, env: dict[str, str] | None = None) -> int:
    """Starts a process in a session of its own; its output goes to `log`, whose previous content moves to `.1`."""
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **(env or {})},
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
    return process.pid


def run(command: Sequence[str], user: str | None = None, timeout_s: float = settings.START_TIMEOUT_S) -> str:
    """Runs to the end and returns what it printed; raises ServiceError with the end of that on failure."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            cwd="/",
            user=user,
            group=user,
            extra_groups=[] if user else None,
            check=False,
        )
    except OSError as error:
        raise ServiceError(f"cannot run {command[0]}: {error}") from error
    except subprocess.TimeoutExpired:
        raise ServiceError(f"{command[0]} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-settings.LOG_TAIL_LINES :])
        raise ServiceError(f"{command[0]} failed with exit code {done.returncode}:\n{tail}")
    return done.stdout


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rsplit(")", 1)[1].split()


def born(pid: int) -> str:
    """When the process started, in the system's own notation; empty when it is gone or a zombie."""
    if not Path("/proc/self/stat").exists():
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return shown.stdout.strip()
    stat = _stat(pid)
    return "" if stat is None or stat[0] in "ZX" else stat[19]


def alive(pid: int, born_at: str) -> bool:
    return pid > 0 and bool(born_at) and born(pid) == born_at


def is_paused(pid: int) -> bool:
    stat = _stat(pid)
    return stat is not None and stat[0] == "T"


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat is not None:
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def signal_tree(pid: int, number: int) -> list[int]:
    """Signals the process first, then its descendants: a parent must not see its children fall and repair them."""
    below = descendants(pid)
    for target in [pid, *below]:
        _send(target, number)
    return [pid, *below]


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it was quicker than we: the wanted end is reached


def wait_gone(pids: Iterable[int], timeout_s: float) -> bool:
    left = {pid: born(pid) for pid in pids}
    give_up = time.monotonic() + timeout_s
    while left := {pid: at for pid, at in left.items() if alive(pid, at)}:
        if time.monotonic() > give_up:
            return False
        time.sleep(POLL_S)
    return True


def terminate(pid: int, number: int = signal.SIGTERM) -> None:
    """Asks the process to end (resuming it first if it was paused), and kills whatever is left after the time limit."""
    signal_tree(pid, signal.SIGCONT)
    everyone = [pid, *descendants(pid)]
    _send(pid, number)
    if wait_gone(everyone, settings.STOP_TIMEOUT_S):
        return
    for target in everyone:
        _send(target, signal.SIGKILL)
    if not wait_gone(everyone, settings.STOP_TIMEOUT_S):
        raise ServiceError(f"process {pid} survived SIGKILL")


def wait_ready(pid: int, ready: Callable[[], bool], log: Path, timeout_s: float) -> None:
    """Polls `ready` until it holds; raises with the end of the log when the process dies or time is up."""
    give_up = time.monotonic() + timeout_s
    while not ready():
        reap(pid)
        if not born(pid):
            raise ServiceError(f"it died while starting; the end of {log}:\n{tail(log)}")
        if time.monotonic() > give_up:
            raise ServiceError(f"it was not ready after {timeout_s:.0f} s; the end of {log}:\n{tail(log)}")
        time.sleep(POLL_S)


def reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by somebody else, or reaped already


def tail(log: Path) -> str:
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-settings.LOG_TAIL_LINES :])
