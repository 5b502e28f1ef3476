"""What one can do with a service: start, stop, restart, kill, pause, resume, release, look.

Holds the lock of the service during each change, so that any number of processes may ask at once.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import kafka, mariadb, packages, postgres, procs, settings, state
from .errors import ServiceError
from .state import Entry

Fetcher = Callable[[str, str | None], str]
Starter = Callable[[str, str | None, Entry], Entry]

STARTERS: dict[str, Starter] = {
    "kafka": kafka.start,
    "kafka39": kafka.start,
    "postgres": postgres.start,
    "mariadb": mariadb.start,
}
FETCHERS: dict[str, Fetcher] = {
    "kafka": kafka.fetch,
    "kafka39": kafka.fetch,
    "postgres": postgres.fetch,
    "mariadb": mariadb.fetch,
}
STOP_SIGNALS = {"postgres": postgres.STOP_SIGNAL}
ENDING_SIGNALS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


@dataclass(frozen=True, slots=True)
class View:
    """`condition`: running, paused, dead (it ended without being asked), failed (see reason) or stopped."""

    entry: Entry
    condition: str


def look(name: str) -> View:
    entry = state.get(name)
    if procs.alive(entry.pid, entry.born):
        return View(entry, "paused" if procs.is_paused(entry.pid) else "running")
    if entry.reason:
        return View(entry, "failed")
    return View(entry, "dead" if entry.pid else "stopped")


def fetch(name: str, version: str | None = None) -> str:
    """Brings what the service is made of onto this machine, without starting it; returns its version."""
    return FETCHERS[name](name, version)


def start(name: str, version: str | None = None, for_pid: int | None = None, clean: bool = False) -> Entry:
    """Reuses a live service, else starts it on its old data. `for_pid`: the test session that needs it."""
    with state.locked(f"service-{name}"):
        view = look(name)
        if view.condition in ("running", "paused") and not clean:
            _reuse(view, version)
        else:
            if clean:
                _end(view)
                _wipe(view.entry)
            _start_anew(name, version)
        return state.update(name, lambda entry: _claimed(entry, view.entry, for_pid))


def _reuse(view: View, version: str | None) -> None:
    entry = view.entry
    if version and version != entry.version:
        raise ServiceError(f"{entry.name} {entry.version} is running; stop it before you start version {version}")
    if view.condition == "paused":
        procs.signal_tree(entry.pid, signal.SIGCONT)


def _start_anew(name: str, version: str | None) -> None:
    try:
        STARTERS[name](name, version, state.get(name))
    except BaseException as error:  # also an interrupt: leave nothing half started
        entry = state.get(name)
        if procs.alive(entry.pid, entry.born):
            procs.terminate(entry.pid, signal.SIGKILL)
        state.record(name, pid=0, born="", reason=str(error) or type(error).__name__)
        raise


def _claimed(entry: Entry, before: Entry, for_pid: int | None) -> Entry:
    if for_pid is None:
        return replace(entry, keep=True)
    users = {pid for pid in before.users if procs.born(pid)} | {for_pid}
    return replace(entry, users=tuple(sorted(users)))


def _end(view: View) -> None:
    if view.condition in ("running", "paused"):
        procs.terminate(view.entry.pid, STOP_SIGNALS.get(view.entry.name, signal.SIGTERM))


def _wipe(entry: Entry) -> None:
    data = Path(entry.data_dir)
    if not entry.data_dir or not data.exists():
        return
    shutil.rmtree(data)
    if data.parent != state.services_dir() and not any(data.parent.iterdir()):
        data.parent.rmdir()  # the directory that was made because another user cannot reach the state directory


def stop(name: str, clean: bool = False) -> Entry:
    with state.locked(f"service-{name}"):
        entry = _shut(name)
        if clean:
            _wipe(entry)
        return entry


def _shut(name: str) -> Entry:
    _end(look(name))
    return state.record(name, pid=0, born="", version="", reason="", keep=False, users=())


def restart(name: str, version: str | None = None) -> Entry:
    """A clean shutdown and a start on the same data and port; who started it and who uses it stay as they were."""
    with state.locked(f"service-{name}"):
        _end(look(name))
        _start_anew(name, version)
        return state.get(name)


def kill(name: str, number: int = signal.SIGKILL) -> Entry:
    """SIGKILL takes the children too, as a power cut would; any other signal goes to the main process alone."""
    with state.locked(f"service-{name}"):
        entry = _live(name)
        everyone = [entry.pid, *procs.descendants(entry.pid)]
        if number == signal.SIGKILL:
            procs.signal_tree(entry.pid, number)
        else:
            os.kill(entry.pid, number)
        if number in ENDING_SIGNALS and not procs.wait_gone(everyone, settings.STOP_TIMEOUT_S):
            raise ServiceError(f"{name} still runs after signal {number}")
        return entry


def pause(name: str) -> Entry:
    with state.locked(f"service-{name}"):
        entry = _live(name)
        procs.signal_tree(entry.pid, signal.SIGSTOP)
        return entry


def resume(name: str) -> Entry:
    with state.locked(f"service-{name}"):
        entry = _live(name)
        procs.signal_tree(entry.pid, signal.SIGCONT)
        return entry


def _live(name: str) -> Entry:
    view = look(name)
    if view.condition not in ("running", "paused"):
        raise ServiceError(f"{name} is not running")
    return view.entry


def release(name: str, for_pid: int) -> bool:
    """The test session `for_pid` needs it no more; stops it if only test sessions wanted it and this was the last."""

    def without(entry: Entry) -> Entry:
        return replace(entry, users=tuple(pid for pid in entry.users if pid != for_pid and procs.born(pid)))

    with state.locked(f"service-{name}"):
        entry = state.update(name, without)
        if entry.keep or entry.users or not entry.pid:
            return False
        _shut(name)
        return True


def ensure_kcat() -> str:
    return packages.ensure("kcat", ("kcat",))
