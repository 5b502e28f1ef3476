"""The rivals: what they are installed from, and how their processes are set up as in production. Makes databases on the
server of `tools/services`, and folders beside the rivals' environments, and removes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks import measure, stage
from benchmarks.rivals.installing import ENVIRONMENTS, Environment, Packages, installed, run
from benchmarks.settings import PARTITIONS

UVLOOP: Final = "uvloop==0.23.0"
HOST: Final = "127.0.0.1"
PORTS: Final = (20_000, 32_000)
"""Below those that the system gives to clients, and below 32,768: more than that Temporal cannot store."""
TEMPORAL_ADDRESS: Final = "RIVALS_TEMPORAL_ADDRESS"
"""host:port of a Temporal server to use in place of one that is built here."""


@dataclass(frozen=True, slots=True)
class RivalPlace(stage.Place):
    """What a rival's processes are told, in place of what ours are."""

    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**self.variables, "PYTHONPATH": str(stage.REPO)}


@dataclass(frozen=True, slots=True)
class Scene:
    """Where and with which processes a rival runs."""

    variables: Mapping[str, str]
    roles: Mapping[str, tuple[str, ...]]  # role -> program and arguments; the last is "client"
    databases: tuple[str, ...] = ()  # whose server processes count
    all_cpu: bool = True  # False when a part of it runs elsewhere


@dataclass(frozen=True, slots=True)
class Rival:
    packages: Packages
    scene: Callable[[Environment, stage.Servers], contextlib.AbstractContextManager[Scene]]


@contextlib.contextmanager
def running(name: str, where: stage.Servers) -> Iterator[tuple[stage.Side, Scene]]:
    """Raises Unavailable."""
    rival = RIVALS[name]
    environment = installed(name, packages_of(name))
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(rival.scene(environment, where))
        place = RivalPlace(stage.new_name(name), "", "", variables=scene.variables)
        processes = {}
        for role, command in scene.roles.items():
            processes[role] = process = stage.Process(("-m", "benchmarks.rivals.become", role, *command), place)
            stack.callback(process.stop)
        pids = {role: process.pid for role, process in processes.items()}
        groups: dict[str, measure.Pids] = {role: partial(list, [pid]) for role, pid in pids.items()}
        if scene.databases:
            groups["database"] = lambda: _serving(where.postgres_pid, scene.databases)
        _ready(processes)
        yield stage.Side(processes["client"], measure.CpuMeter(groups), pids), scene


def _ready(processes: Mapping[str, stage.Process]) -> None:
    try:
        processes["client"].answer()
    except RuntimeError:
        for role, process in processes.items():
            print(f"--- {role}:\n{process.log()}", file=sys.stderr)
        raise


def _serving(postmaster: int, databases: tuple[str, ...]) -> list[int]:
    """The processes that serve these databases, and those that serve all: writer, checkpointer and the like."""
    return [pid for pid in measure.children(postmaster) if serves(measure.title(pid), databases)]


def serves(title: str, databases: tuple[str, ...]) -> bool:
    return not title.startswith("postgres: romancy ") or any(f" {name} " in title for name in databases)


def packages_of(name: str) -> Packages:
    packages = RIVALS[name].packages
    if name == "temporal" and TEMPORAL_ADDRESS in os.environ:
        return Packages(packages.version, packages.pypi)
    return packages


# -- places --------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def database(where: stage.Servers, name: str) -> Iterator[str]:
    """Its URL. It is on the server that ours is on, with the same settings: fsync, synchronous commits."""
    asyncio.run(_execute(where.postgres, f"CREATE DATABASE {name}"))
    try:
        yield f"{where.postgres.rsplit('/', 1)[0]}/{name}"
    finally:
        asyncio.run(_execute(where.postgres, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def free_ports(count: int) -> list[int]:
    """Of this moment."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(*PORTS)
            with contextlib.suppress(OSError):  # taken: another one
                stack.enter_context(socket.socket()).bind((HOST, port))
                found.append(port)
    return found


def _program(environment: Environment, name: str) -> tuple[str, ...]:
    return (environment.python, "-m", f"benchmarks.rivals.programs.{name}")


# -- libraries on PostgreSQL ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def _library(program: str, environment: Environment, where: stage.Servers) -> Iterator[Scene]:
    name = stage.new_name(program).replace("-", "_")
    with database(where, name) as url:
        yield Scene({"RIVAL_DATABASE": url}, {"client": _program(environment, program)}, (name,))


# -- Restate -------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _restate(environment: Environment, where: stage.Servers) -> Iterator[Scene]:
    """One server with its defaults for production, which writes to a disk of this machine and syncs; as many
    partitions as ours."""
    del where  # it has a store of its own
    node, ingress, admin, service = map(str, free_ports(4))
    binary = next(environment.npm("@restatedev").glob("restate-server-*/bin/restate-server"))
    # beside the environment: a temporary directory may be in memory, where syncing costs nothing
    with tempfile.TemporaryDirectory(prefix="restate-data-", dir=ENVIRONMENTS) as folder:
        variables = {
            "RIVAL_INGRESS_PORT": ingress,
            "RIVAL_ADMIN_PORT": admin,
            "RIVAL_SERVICE_PORT": service,
            "RESTATE_BIND_PORT": node,
            "RESTATE_INGRESS__BIND_PORT": ingress,
            "RESTATE_ADMIN__BIND_PORT": admin,
            "RESTATE_DEFAULT_NUM_PARTITIONS": str(PARTITIONS),
            "RESTATE_LOG_FILTER": "warn",
            "RESTATE_DISABLE_TELEMETRY": "true",
        }
        options = ("--base-dir", folder, "--node-name", "bench", "--bind-ip", HOST, "--listen-mode", "tcp")
        yield Scene(
            variables,
            {
                "engine": (str(binary), "--no-logo", *options),
                "worker": _program(environment, "restate_service"),
                "client": _program(environment, "restate_client"),
            },
        )


# -- Temporal ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _temporal(environment: Environment, where: stage.Servers) -> Iterator[Scene]:
    """The server's four services in one process, history and visibility on PostgreSQL; a worker, a client."""
    roles = {
        "worker": _program(environment, "temporal_work"),
        "client": _program(environment, "temporal_client"),
    }
    given = os.environ.get(TEMPORAL_ADDRESS)
    if given is not None:
        variables = {"RIVAL_ADDRESS": given, "RIVAL_NAMESPACE": stage.new_name("temporal")}
        yield Scene(variables, roles, all_cpu=False)
        return
    name = stage.new_name("temporal").replace("-", "_")
    names = {"temporal": name, "visibility": f"{name}_visibility"}
    with contextlib.ExitStack() as stack:
        for kind, each in names.items():
            stack.enter_context(database(where, each))
            _make_tables(environment.go("sql"), where, each, kind)
        ports = free_ports(8)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="temporal-", dir=ENVIRONMENTS))
        path = f"{folder}/server.yaml"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(temporal_config(where.postgres, names, ports), file)  # which YAML is a kind of
        server = (environment.go("server"), "--config-file", path, "--allow-no-auth", "start")
        variables = {"RIVAL_ADDRESS": f"{HOST}:{ports[0]}", "RIVAL_NAMESPACE": "bench"}
        yield Scene(variables, {"engine": server, **roles}, tuple(names.values()))


def _make_tables(tool: str, where: stage.Servers, name: str, kind: str) -> None:
    url = urlsplit(where.postgres)
    at = ["--ep", str(url.hostname), "--port", str(url.port), "--user", str(url.username), "--db", name]
    run([tool, "--plugin", "postgres12", *at, "setup-schema", "--version", "0.0"])
    run([tool, "--plugin", "postgres12", *at, "update-schema", "--schema-name", f"postgresql/v12/{kind}"])


def temporal_config(postgres: str, names: Mapping[str, str], ports: list[int]) -> dict[str, Any]:
    """Connections and shards are those of the configuration for PostgreSQL that comes with the server."""
    url = urlsplit(postgres)
    services = ("frontend", "matching", "history", "worker")
    connections = {"temporal": 20, "visibility": 2}
    stores = {
        kind: {
            "sql": {
                "pluginName": "postgres12",
                "databaseName": name,
                "connectAddr": f"{url.hostname}:{url.port}",
                "connectProtocol": "tcp",
                "user": url.username,
                "password": url.password or "",
                "maxConns": connections[kind],
                "maxIdleConns": connections[kind],
                "maxConnLifetime": "1h",
            }
        }
        for kind, name in names.items()
    }
    cluster = {
        "enabled": True,
        "initialFailoverVersion": 1,
        "rpcName": "frontend",
        "rpcAddress": f"localhost:{ports[0]}",
    }
    return {
        "log": {"stdout": True, "level": "error"},
        "persistence": {
            "defaultStore": "temporal",
            "visibilityStore": "visibility",
            "numHistoryShards": 4,
            "datastores": stores,
        },
        "global": {"membership": {"maxJoinDuration": "30s", "broadcastAddress": HOST}},
        "services": {
            service: {"rpc": {"grpcPort": rpc, "membershipPort": membership, "bindOnLocalHost": True}}
            for service, rpc, membership in zip(services, ports[:4], ports[4:], strict=True)
        },
        "clusterMetadata": {
            "enableGlobalNamespace": False,
            "failoverVersionIncrement": 10,
            "masterClusterName": "active",
            "currentClusterName": "active",
            "clusterInformation": {"active": cluster},
        },
        "dcRedirectionPolicy": {"policy": "noop"},
    }


RIVALS: Final = {
    "dbos": Rival(Packages("3.4.0", ("dbos==3.4.0", UVLOOP)), partial(_library, "dbos_app")),
    "restate": Rival(
        Packages(
            "1.7.12",
            ("restate-sdk==1.3.0", "hypercorn==0.18.0", "aiohttp==3.14.5", UVLOOP),
            ("@restatedev/restate-server@1.7.12",),
        ),
        _restate,
    ),
    "temporal": Rival(
        Packages(
            "1.32.0",  # the newest that Go 1.26.8 compiles
            ("temporalio==1.35.0", UVLOOP),
            go_module="go.temporal.io/server@v1.32.0",
            go_programs=("cmd/server", "cmd/tools/sql"),
        ),
        _temporal,
    ),
    "edda": Rival(
        Packages("0.16.2", ("edda-framework[postgresql]==0.16.2", UVLOOP)),
        partial(_library, "edda_app"),
    ),
}
