"""MariaDB in a private data directory, with durable commits and one user who may make databases.

May run mariadb-install-db and mariadbd, install the server package, and write below the state directory.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import zlib
from pathlib import Path

from . import packages, ports, procs, settings, state
from .errors import Unavailable

PACKAGES = ("mariadb-server-core", "mariadb-client-core")
PROGRAMS = ("mariadbd", "mariadb-install-db", "my_print_defaults")
PING_TIMEOUT_S = 2.0
PROTOCOL_VERSION = 10  # first byte of the greeting that a server in service sends


def fetch(_name: str, version: str | None) -> str:
    return _series(packages.ensure("mariadbd", PACKAGES, _find), version)


def _series(server: str, wanted: str | None) -> str:
    found = re.search(r"(\d+\.\d+)\.\d+", procs.run([server, "--no-defaults", "--version"]))
    series = found[1] if found else "unknown"
    if wanted and wanted != series:
        raise Unavailable(f"the installed MariaDB is {series}, not {wanted}")
    return series


def start(name: str, version: str | None, entry: state.Entry) -> state.Entry:
    server = packages.ensure("mariadbd", PACKAGES, _find)
    series = _series(server, version)
    data = state.services_dir() / f"{name}-{series}-data"
    if not (data / ".complete").exists():
        _initialise(data)
    port, _ = ports.assign(name)
    log = state.services_dir() / f"{name}.log"
    pid = procs.spawn([server, *_options(data, port)], log)
    url = f"mysql://{settings.USER}@127.0.0.1:{port}/{settings.DATABASE}"
    changes = {"pid": pid, "born": procs.born(pid), "port": port, "version": series, "url": url, "reason": ""}
    started = state.record(name, **changes, data_dir=str(data), log=str(log))
    procs.wait_ready(pid, lambda: _greets(port), log, settings.START_TIMEOUT_S)
    return started


def _find() -> str | None:
    """Path of `mariadbd` when everything that is needed is there."""
    found = [packages.find(program) for program in PROGRAMS]
    return found[0] if all(found) else None


def _as_root() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []


def _initialise(data: Path) -> None:
    installer = packages.find("mariadb-install-db") or "mariadb-install-db"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True, mode=0o700)
    options = [f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db", *_as_root()]
    procs.run([installer, "--no-defaults", *options])
    (data / ".complete").touch()


def _options(data: Path, port: int) -> list[str]:
    # Runs before the first client is let in; each statement may be repeated at every start.
    account = f"'{settings.USER}'@'127.0.0.1'"
    statements = [
        f"CREATE DATABASE IF NOT EXISTS {settings.DATABASE} CHARACTER SET utf8mb4",
        f"CREATE USER IF NOT EXISTS {account}",
        f"GRANT ALL PRIVILEGES ON *.* TO {account} WITH GRANT OPTION",
    ]
    init = data.with_name(data.name + ".sql")
    init.write_text("".join(f"{statement};\n" for statement in statements))
    # A socket path may not exceed 107 bytes, so it cannot lie in the state directory.
    socket_path = Path(tempfile.gettempdir()) / f"romancy-{zlib.crc32(bytes(data)):08x}.sock"
    fixed = [f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve", "--skip-log-bin"]
    places = [f"--socket={socket_path}", f"--pid-file={data}/mariadbd.pid", f"--init-file={init}"]
    chosen = [f"--{key}={value}" for key, value in settings.MARIADB_LOCAL.items()]
    return ["--no-defaults", *fixed, *places, *chosen, *_as_root()]


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), PING_TIMEOUT_S) as connection:
            greeting = connection.recv(5)
    except OSError:
        return False  # not listening yet: the caller polls
    return len(greeting) == 5 and greeting[4] == PROTOCOL_VERSION
