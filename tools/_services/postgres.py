"""PostgreSQL in a private data directory, run as an ordinary user, with durable commits.

May run initdb, postgres and psql, install the server package, and write below the state directory, or in a directory of
its own below the temporary directory when the unprivileged user cannot reach the state directory.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import zlib
from pathlib import Path

from . import packages, ports, procs, settings, state
from .errors import ServiceError, Unavailable

PACKAGES = ("postgresql",)
PROGRAMS = ("initdb", "pg_isready", "psql")  # needed beside `postgres` itself
STOP_SIGNAL = signal.SIGINT  # "fast": does not wait for clients


def fetch(_name: str, version: str | None) -> str:
    return str(_major(_binaries(version)))


def start(name: str, version: str | None, entry: state.Entry) -> state.Entry:
    binaries = _binaries(version)
    major = _major(binaries)
    user = packages.unprivileged_user("postgres")
    data = _data_dir(name, major, user)
    if not (data / "PG_VERSION").exists():
        _initialise(binaries, data, user)
    _drop_stale_lock(data, entry)
    port, _ = ports.assign(name)
    log = state.services_dir() / f"{name}.log"
    values = {**settings.POSTGRES_SHARED, "listen_addresses": "127.0.0.1", "port": str(port)}
    options = [f"--{key}={value}" for key, value in {**values, "unix_socket_directories": ""}.items()]
    pid = procs.spawn([str(binaries / "postgres"), "-D", str(data), *options], log, user)
    url = f"postgresql://{settings.USER}@127.0.0.1:{port}/{settings.DATABASE}"
    changes = {"pid": pid, "born": procs.born(pid), "port": port, "version": str(major), "url": url, "reason": ""}
    started = state.record(name, **changes, data_dir=str(data), log=str(log))
    ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", settings.USER]
    procs.wait_ready(pid, lambda: _succeeds(ready), log, settings.START_TIMEOUT_S)
    _ensure_database(binaries, port)
    return started


def _binaries(version: str | None) -> Path:
    return Path(packages.ensure("postgres", PACKAGES, lambda: _find(version))).parent


def _find(version: str | None) -> str | None:
    """Path of the newest `postgres` that is new enough (or of the one asked for)."""
    found = packages.find("postgres")
    candidates = [Path(found).resolve()] if found else []
    candidates += Path("/usr/lib/postgresql").glob("*/bin/postgres")
    complete = [path for path in candidates if all((path.parent / program).exists() for program in PROGRAMS)]
    usable = [(_major(path.parent), str(path)) for path in complete]
    wanted = [(m, p) for m, p in usable if (m == int(version) if version else m >= settings.POSTGRES_MIN_MAJOR)]
    return max(wanted)[1] if wanted else None


def _major(binaries: Path) -> int:
    shown = procs.run([str(binaries / "postgres"), "--version"])
    found = re.search(r"(\d+)(\.\d+|devel|beta|rc)", shown)
    if found is None:
        raise Unavailable(f"cannot read a version from {shown.strip()!r}")
    return int(found[1])


def _data_dir(name: str, major: int, user: str | None) -> Path:
    wanted = state.services_dir() / f"{name}-{major}-data"
    if packages.reachable_by(user, wanted):
        return wanted
    return Path(tempfile.gettempdir()) / f"romancy-{zlib.crc32(bytes(state.services_dir())):08x}" / wanted.name


def _initialise(binaries: Path, data: Path, user: str | None) -> None:
    shutil.rmtree(data, ignore_errors=True)
    data.parent.mkdir(parents=True, exist_ok=True)
    data.mkdir(mode=0o700)
    if user:
        shutil.chown(data, user, user)
    options = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--username", settings.USER]
    procs.run([str(binaries / "initdb"), "-D", str(data), *options], user)


def _drop_stale_lock(data: Path, entry: state.Entry) -> None:
    """A killed server may stay a zombie where nobody reaps it; PostgreSQL would take that for a live one."""
    lock = data / "postmaster.pid"
    if not lock.exists():
        return
    pid = int(lock.read_text().split()[0])
    if pid == entry.pid or not procs.born(pid):
        lock.unlink()


def _succeeds(command: list[str]) -> bool:
    try:
        procs.run(command)
    except ServiceError:
        return False  # not ready yet: the caller polls
    return True


def _ensure_database(binaries: Path, port: int) -> None:
    psql = [str(binaries / "psql"), "-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-p", str(port), "-U", settings.USER]
    psql += ["-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c"]
    if procs.run([*psql, f"SELECT 1 FROM pg_database WHERE datname = '{settings.DATABASE}'"]).strip() != "1":
        procs.run([*psql, f"CREATE DATABASE {settings.DATABASE}"])
