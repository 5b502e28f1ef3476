"""Sets the stage for a benchmark: a namespace, topics and a database of its own for each side, its processes with their
orders, and the line of JSON at the end. Starts processes and ends them; makes databases on the server of
`tools/services` and drops them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from benchmarks import measure
from benchmarks.settings import PARTITIONS, PARTITIONS_VARIABLE

REPO: Final = Path(__file__).resolve().parents[1]
STOP_LIMIT_S: Final = 30.0
ROMANCY: Final = ("-c", "from romancy_stream.cli import main; main()", "worker", "benchmarks.app:app")


@dataclass(frozen=True, slots=True)
class Servers:
    kafka: str
    kafka_pid: int
    kafka_data: Path
    postgres: str
    postgres_pid: int


def servers() -> Servers:
    """Starts what is not running; that stays."""
    tool = [sys.executable, str(REPO / "tools" / "services")]
    subprocess.run([*tool, "start", "kafka", "postgres"], check=True, stdout=subprocess.DEVNULL)
    status = subprocess.run([*tool, "status", "--json"], check=True, capture_output=True, text=True).stdout
    env = subprocess.run([*tool, "env", "--json"], check=True, capture_output=True, text=True).stdout
    pids, urls = json.loads(status), json.loads(env)
    return Servers(
        urls["KAFKA_BOOTSTRAP"],
        int(pids["kafka"]["pid"]),
        Path(pids["kafka"]["data_dir"]),
        urls["POSTGRES_URL"],
        int(pids["postgres"]["pid"]),
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where one side has its messages and its rows."""

    namespace: str
    broker: str
    database: str
    partitions: int = PARTITIONS

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ROMANCY_NAMESPACE": self.namespace,
            "ROMANCY_BROKER": self.broker,
            "ROMANCY_DATABASE": self.database,
            PARTITIONS_VARIABLE: str(self.partitions),
            "PYTHONPATH": str(REPO),
        }

    @property
    def database_name(self) -> str:
        return self.database.rsplit("/", 1)[1]


def new_name(side: str) -> str:
    return f"bench-{side}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def kafka_and_postgres(side: str, where: Servers, partitions: int = PARTITIONS) -> Iterator[Place]:
    """Topics and tables as the engine makes them, for the floor too."""
    namespace = new_name(side)
    name = namespace.replace("-", "_")
    _on_server(where.postgres, f"CREATE DATABASE {name}")
    place = Place(namespace, f"kafka://{where.kafka}", f"{where.postgres.rsplit('/', 1)[0]}/{name}", partitions)
    try:
        asyncio.run(_initialise(place))
        yield place
    finally:
        _on_server(where.postgres, f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def embedded_and_sqlite(side: str) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="romancy-bench-") as folder:
        place = Place(new_name(side), f"embedded://{folder}/log", f"sqlite:///{folder}/state.db")
        asyncio.run(_initialise(place))
        yield place


async def _initialise(place: Place) -> None:
    from romancy_stream import App
    from romancy_stream.runtime.node import initialise

    app = App(place.namespace, broker=place.broker, database=place.database, partitions=place.partitions)
    store, broker = app.make_store(), app.make_broker()
    await store.open()
    await broker.open()
    try:
        await initialise(app.node_config(), broker, store)
    finally:
        await broker.close()
        await store.close()


def _on_server(url: str, statement: str) -> None:
    import asyncpg

    async def execute() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute())


class Process:
    """One role. What it logs goes to a file that is shown when it fails."""

    def __init__(self, arguments: Sequence[str], place: Place) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `stop`)
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=REPO,
            env={**os.environ, **place.environment},
        )
        self.pid = self._process.pid

    def ask(self, order: str) -> dict[str, Any]:
        """Of a process under orders."""
        _of(self._process.stdin).write(order + "\n")
        _of(self._process.stdin).flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        line = _of(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"a benchmark process ended:\n{self.log()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()[-10_000:]

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(BrokenPipeError):
            _of(self._process.stdin).close()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _of(self._process.stdout).close()
        self._log.close()


def _of(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison, running. `client` is under orders."""

    client: Process
    meter: measure.CpuMeter
    pids: Mapping[str, int]  # of the processes that were started for it, by role
    listener: Process | None = None  # another one under orders


@contextlib.contextmanager
def running(place: Place, roles: Roles, where: Servers | None) -> Iterator[Side]:
    """`roles`: name -> arguments of its Python; one of them is "client", and one may be "listener"."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, arguments in roles.items():
            processes[name] = process = Process(arguments, place)
            stack.callback(process.stop)
        pids = {name: process.pid for name, process in processes.items()}
        groups: dict[str, measure.Pids] = {name: partial(list, [pid]) for name, pid in pids.items()}
        if where is not None:
            groups["broker"] = lambda: [where.kafka_pid]
            groups["database"] = lambda: _backends(where.postgres_pid, place.database_name)
        listener = processes.get("listener")
        for process in (processes["client"], *([listener] if listener is not None else [])):
            process.answer()
        yield Side(processes["client"], measure.CpuMeter(groups), pids, listener)


@dataclass(frozen=True, slots=True)
class Both:
    place: Place
    side: Side


def _backends(postmaster: int, database: str) -> list[int]:
    """Those that serve this database, and the ones that serve all: writer, checkpointer and the like."""
    return [pid for pid in measure.children(postmaster) if _is_ours(measure.title(pid), database)]


def _is_ours(title: str, database: str) -> bool:
    return f" {database} " in title or not title.startswith("postgres: romancy ")


Roles = Mapping[str, Sequence[str]]
FLOOR: Final[Roles] = {role: ("-m", "benchmarks.floor", role) for role in ("engine", "worker", "client")}
FLOOR_EAGER: Final[Roles] = {"engine": (*FLOOR["engine"], "--eager"), "client": FLOOR["client"]}
ENGINE: Final[Roles] = {
    "engine": (*ROMANCY, "--roles", "engine", "--no-init"),
    "worker": (*ROMANCY, "--roles", "worker", "--no-init"),
    "client": ("-m", "benchmarks.client"),
}
TOGETHER: Final[Roles] = {"engine": (*ROMANCY, "--no-init"), "client": ("-m", "benchmarks.client")}
"""Engine and worker in one process, as `romancy worker` runs them."""
ALONE: Final[Roles] = {"client": ("-m", "benchmarks.client", "--alone")}
FLOOR_ALONE: Final[Roles] = {"client": ("-m", "benchmarks.floor_alone")}


def engine_roles(options: argparse.Namespace) -> Roles:
    if options.broker == "embedded":
        return ALONE
    return TOGETHER if options.steps == EAGER else ENGINE


def floor_roles(options: argparse.Namespace) -> Roles:
    if options.broker == "embedded":
        return FLOOR_ALONE
    return FLOOR_EAGER if options.steps == EAGER else FLOOR


@contextlib.contextmanager
def both_running(
    options: argparse.Namespace, names: Sequence[str] = ("floor", "engine")
) -> Iterator[Mapping[str, Both]]:
    """Floor and engine, each in a place of its own, warm."""
    where = servers() if options.broker == "kafka" else None
    sides = {}
    with contextlib.ExitStack() as stack:
        for name, roles in (("floor", floor_roles(options)), ("engine", engine_roles(options))):
            if name in names:
                place = stack.enter_context(kafka_and_postgres(name, where) if where else embedded_and_sqlite(name))
                sides[name] = Both(place, stack.enter_context(running(place, roles, where)))
                sides[name].side.client.ask(f"burst {options.warm_up}")
        yield sides


# -- the command line that all benchmarks share --------------------------------------------------------------------
_DATABASES: Final = {"kafka": "postgresql", "embedded": "sqlite"}


def add_place_options(parser: argparse.ArgumentParser, broker: str = "kafka") -> None:
    parser.add_argument("--broker", choices=list(_DATABASES), default=broker)
    parser.add_argument("--database", choices=list(_DATABASES.values()), help="goes with the broker")


EAGER: Final = "eager"


def add_eager_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--eager",
        dest="steps",
        action="store_const",
        const=EAGER,
        help="engine and worker are one process, in which steps stay where there is room; otherwise two, with Kafka",
    )


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    fitting = _DATABASES[options.broker]
    if options.database not in (None, fitting):
        parser.error(f"--broker {options.broker} is measured with --database {fitting}")
    if options.broker == "embedded" and getattr(options, "steps", None) is not None:
        parser.error("--broker embedded is one process, and its steps are eager without --eager")
    options.database = fitting
    options.machine = measure.machine()
    return options


def report(benchmark: str, options: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    asked = {name: value for name, value in vars(options).items() if name in _REPORTED and value is not None}
    print(json.dumps({"benchmark": benchmark, **asked, **facts}))


_REPORTED: Final = frozenset({"steps", "broker", "database", "workflows", "runs", "machine"})
