"""What is known about the services, in `<state dir>/state.json`, and the locks that make parallel starts safe.

The state directory is `$ROMANCY_SERVICES_DIR`, else `.services/` of the working copy. This module may read and write
that directory only. Two kinds of lock: one short one around each change of state.json, and one per service (or other
resource) that is held while it is being started, stopped or installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from . import settings
from .errors import ServiceError

REPO = Path(__file__).resolve().parents[2]
LOCK_POLL_S = 0.05


def default_dir() -> Path:
    return REPO / ".services"


def services_dir() -> Path:
    configured = os.environ.get("ROMANCY_SERVICES_DIR")
    path = Path(configured).resolve() if configured else default_dir()
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True, slots=True)
class Entry:
    """One service. `pid` 0: not running as far as we know. `born` tells a reused pid from ours.

    `keep`: a person started it, so no test session may stop it. `users`: the test sessions (pids) that use it.
    """

    name: str
    pid: int = 0
    born: str = ""
    port: int = 0
    extra_port: int = 0
    version: str = ""
    url: str = ""
    data_dir: str = ""
    log: str = ""
    reason: str = ""
    keep: bool = False
    users: tuple[int, ...] = field(default=())


def load() -> dict[str, Entry]:
    path = services_dir() / "state.json"
    if not path.exists():
        return {}
    known = {f.name for f in fields(Entry)}
    raw = json.loads(path.read_text())
    return {name: _entry({k: v for k, v in values.items() if k in known}) for name, values in raw["services"].items()}


def _entry(values: dict[str, object]) -> Entry:
    users = values.pop("users", ())
    assert isinstance(users, (list, tuple))
    return Entry(**values, users=tuple(users))  # type: ignore[arg-type]


def get(name: str) -> Entry:
    return load().get(name, Entry(name))


def update(name: str, change: Callable[[Entry], Entry]) -> Entry:
    with locked("state"):
        entries = load()
        entries[name] = change(entries.get(name, Entry(name)))
        _save(entries)
        return entries[name]


def record(name: str, **changes: object) -> Entry:
    return update(name, lambda entry: replace(entry, **changes))  # type: ignore[arg-type]


def _save(entries: dict[str, Entry]) -> None:
    path = services_dir() / "state.json"
    temporary = path.with_suffix(".tmp")
    body = {"services": {name: asdict(entry) for name, entry in sorted(entries.items())}}
    temporary.write_text(json.dumps(body, indent=2) + "\n")
    temporary.replace(path)


@contextlib.contextmanager
def locked(name: str, directory: Path | None = None) -> Iterator[None]:
    directory = directory or services_dir()
    directory.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + settings.LOCK_TIMEOUT_S
    with (directory / f"{name}.lock").open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise ServiceError(f"gave up waiting for the lock {handle.name}") from None
                time.sleep(LOCK_POLL_S)
        yield
