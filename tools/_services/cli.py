"""The command line of tools/services. Prints to standard output and error; everything it does is done by lifecycle.py.

Exit codes: 0 done; 1 a service could not be brought to the wanted state; 2 wrong usage; 3 a service cannot be had on
this machine at all (the reason is printed, and kept in state.json).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from . import lifecycle, settings, state
from .errors import ServiceError, Unavailable

EXIT_FAILED, EXIT_UNAVAILABLE = 1, 3
FOR_PID_VARIABLE = "ROMANCY_SERVICES_FOR_PID"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/services", description="Real Kafka and databases for development and tests"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fetch = _command(commands, "fetch", _fetch, "install and download what they are made of, start nothing", some="*")
    _add_versions(fetch)
    start = _command(commands, "start", _start, "start, or reuse what lives", some="*")
    _add_versions(start)
    start.add_argument("--clean", action="store_true", help="stop it if it runs and throw its old data away first")
    stop = _command(commands, "stop", _stop, "stop and forget who uses it", some="*")
    stop.add_argument("--clean", action="store_true", help="also delete its data")
    _add_versions(
        _command(commands, "restart", _restart, "shut down and start again on the same data and port", some="+")
    )
    killer = _command(commands, "kill", _kill, "send a signal (default 9, children included)", some="+")
    killer.add_argument("--signal", type=int, default=9)
    _command(commands, "pause", _pause, "freeze with SIGSTOP", some="+")
    _command(commands, "resume", _resume, "unfreeze with SIGCONT", some="+")
    _command(commands, "status", _status, "what runs, where, and why not", some="*").add_argument(
        "--json", action="store_true"
    )
    _command(commands, "env", _env, "KEY=VALUE lines of what runs").add_argument("--json", action="store_true")
    release = _command(commands, "release", _release, "a test session has ended: stop what only it wanted")
    release.add_argument("--for-pid", type=int, required=True)
    start.add_argument("--for-pid", type=int, default=os.environ.get(FOR_PID_VARIABLE), help="see release")
    ensure = _command(commands, "ensure", _ensure, "install a helper program")
    ensure.add_argument("program", choices=["kcat"])
    return parser


def _command(commands: Any, name: str, run: Callable[..., int], text: str, some: str | None = None) -> Any:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    if some:
        default = {"start": settings.DEFAULT_SERVICES}.get(name, settings.SERVICES)
        command.add_argument("services", nargs=some, metavar="SERVICE", help=", ".join(settings.SERVICES))
        command.set_defaults(default_services=default)
    return command


def _add_versions(command: argparse.ArgumentParser) -> None:
    for name in settings.SERVICES:
        command.add_argument(f"--{name}-version", metavar="V")


def _names(options: argparse.Namespace) -> list[str]:
    unknown = sorted(set(options.services) - set(settings.SERVICES))
    if unknown:
        print(f"unknown service: {', '.join(unknown)}; there are: {', '.join(settings.SERVICES)}", file=sys.stderr)
        raise SystemExit(2)
    return list(dict.fromkeys(options.services or options.default_services))


def _each(names: Sequence[str], action: Callable[[str], str]) -> int:
    """Does it for all of them at once; one that fails does not keep the others from it. Returns the exit code."""
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        codes = list(pool.map(lambda name: _guarded(name, action), names))
    return max(codes, default=0)


def _guarded(name: str, action: Callable[[str], str]) -> int:
    try:
        _say(sys.stdout, f"{name}: {action(name)}")
    except Unavailable as error:
        _say(sys.stderr, f"{name}: cannot be had here: {error}")
        return EXIT_UNAVAILABLE
    except ServiceError as error:
        _say(sys.stderr, f"{name}: {error}")
        return EXIT_FAILED
    return 0


def _say(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")  # one write: other threads speak too
    stream.flush()


def _version(options: argparse.Namespace, name: str) -> str | None:
    version: str | None = getattr(options, f"{name}_version")
    return version


def _fetch(options: argparse.Namespace) -> int:
    return _each(_names(options), lambda name: f"version {lifecycle.fetch(name, _version(options, name))} is here")


def _start(options: argparse.Namespace) -> int:
    for_pid = int(options.for_pid) if options.for_pid else None

    def one(name: str) -> str:
        return _shown(lifecycle.start(name, _version(options, name), for_pid, options.clean))

    return _each(_names(options), one)


def _stop(options: argparse.Namespace) -> int:
    def one(name: str) -> str:
        lifecycle.stop(name, options.clean)
        return "stopped"

    return _each(_names(options), one)


def _restart(options: argparse.Namespace) -> int:
    return _each(_names(options), lambda name: _shown(lifecycle.restart(name, _version(options, name))))


def _kill(options: argparse.Namespace) -> int:
    return _each(_names(options), lambda name: f"signal {options.signal} to {lifecycle.kill(name, options.signal).pid}")


def _pause(options: argparse.Namespace) -> int:
    return _each(_names(options), lambda name: f"paused {lifecycle.pause(name).pid}")


def _resume(options: argparse.Namespace) -> int:
    return _each(_names(options), lambda name: f"resumed {lifecycle.resume(name).pid}")


def _release(options: argparse.Namespace) -> int:
    def one(name: str) -> str:
        return "stopped" if lifecycle.release(name, options.for_pid) else "left as it is"

    return _each(sorted(state.load()), one)


def _shown(entry: state.Entry) -> str:
    return f"{entry.url} (version {entry.version}, pid {entry.pid})"


def _status(options: argparse.Namespace) -> int:
    views = {name: lifecycle.look(name) for name in _names(options)}
    if options.json:
        print(json.dumps({name: _facts(view) for name, view in views.items()}, indent=2))
        return 0
    for name, view in views.items():
        detail = view.entry.reason if view.condition == "failed" else _shown(view.entry) if view.entry.pid else ""
        print(f"{name:9} {view.condition:8} {detail}".rstrip())
    return 0


def _facts(view: lifecycle.View) -> dict[str, object]:
    entry = view.entry
    shown = ("pid", "port", "version", "url", "data_dir", "log", "reason", "keep", "users")
    return {"condition": view.condition, **{key: getattr(entry, key) for key in shown}}


def environment() -> dict[str, str]:
    """What a program needs to reach the live services; the ROMANCY_ names are the ones that `romancy` itself reads."""
    live = {
        name: v.entry for name in settings.SERVICES if (v := lifecycle.look(name)).condition in ("running", "paused")
    }
    keys = {
        "kafka": "KAFKA_BOOTSTRAP",
        "kafka39": "KAFKA39_BOOTSTRAP",
        "postgres": "POSTGRES_URL",
        "mariadb": "MARIADB_URL",
    }
    values = {keys[name]: entry.url for name, entry in live.items()}
    if "kafka" in live:
        values["ROMANCY_BROKER"] = f"kafka://{live['kafka'].url}"
    if "postgres" in live:
        values["ROMANCY_DATABASE"] = live["postgres"].url
    return values


def _env(options: argparse.Namespace) -> int:
    values = environment()
    print(json.dumps(values, indent=2) if options.json else "\n".join(f"{k}={v}" for k, v in values.items()))
    return 0


def _ensure(options: argparse.Namespace) -> int:
    return _each([options.program], lambda _name: lifecycle.ensure_kcat())
