"""Imports go down only, and the core stays free of I/O, clocks and chance. Reads source, imports nothing of it: a
mistake shows even where no other test goes.

The layers, from the bottom. A line may use what stands above it in this table, and no more than `MAY_USE` says.

    spans, errors, retry, queues, ids, contract     vocabulary
    wire                             CloudEvents and records, as values
    engine                           the core: a batch in, a commit out
    options, child, context, workflow, activity, registry     definitions of user code
    store | broker                   the two ports and what implements them; neither knows the other
    runtime                          the shell around the core
    commanding, instances, handle, starting, client, app, audit    what users hold in their hands
    testing                          for users' tests: an app's surroundings, made of dicts and lists
    cli                              the command line
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.modules import PACKAGE, imports, is_ours, modules, tree

VOCABULARY = {"spans", "errors", "retry", "queues", "ids", "contract"}
DEFINITIONS = {
    "events",
    "messaging",
    "listening",
    "options",
    "child",
    "context",
    "interaction",
    "workflow",
    "activity",
    "registry",
}
SCHEDULES = {"schedule", "schedule_times", "schedule_workflow"}
BELOW_RUNTIME = VOCABULARY | DEFINITIONS | {"wire", "engine", "store", "broker"}

MAY_USE: dict[str, set[str]] = {
    "spans": set(),
    "errors": {"spans"},
    "retry": {"spans"},
    "queues": {"spans"},
    "ids": set(),
    "contract": {"errors"},
    "wire": {"errors", "contract"},
    "engine": {"errors", "retry", "wire"},
    "events": {"engine", "wire"},
    "options": {"spans", "engine"},
    "messaging": {"spans", "errors", "engine", "wire", "options"},
    "child": {"engine", "wire", "options"},
    "context": {"spans", "errors", "engine", "wire", "events", "messaging", "options", "child"},
    "interaction": {"errors", "engine", "context"},
    "workflow": {"errors", "queues", "engine", "options", "child", "context", "interaction"},
    "activity": {"spans", "errors", "retry", "engine", "messaging", "context", "wire"},
    "listening": {"activity"},
    "registry": {"errors", "engine", "wire", "events", "workflow", "activity"},
    "schedule_times": set(),
    "schedule": {"spans", "schedule_times"},
    "schedule_workflow": {"engine", "context", "interaction", "workflow", "schedule", "schedule_times"},
    "store": {"errors", "contract", "wire", "engine"},
    "broker": {"errors", "wire"},
    "runtime": BELOW_RUNTIME,
    "payloads": {"errors", "ids", "engine", "wire", "runtime"},
    "instances": {"engine", "store"},
    "commanding": BELOW_RUNTIME | {"runtime"},
    "publishing": BELOW_RUNTIME | {"commanding"},
    "cancelling": BELOW_RUNTIME | {"commanding"},
    "talking": BELOW_RUNTIME | {"commanding"},
    "operating": BELOW_RUNTIME | {"instances", "cancelling"},
    "handle": {"errors", "engine", "instances", "runtime", "workflow", "cancelling", "operating", "talking"},
    "starting": BELOW_RUNTIME | {"commanding", "handle"},
    "scheduling": BELOW_RUNTIME | {"starting", "talking", *SCHEDULES},
    "client": BELOW_RUNTIME | {"runtime", "instances", "handle", "scheduling", "operating", "publishing"},
    "app": BELOW_RUNTIME | {"runtime", "payloads", "instances", "handle", "scheduling", "client", *SCHEDULES},
    "audit": {"errors", "wire", "engine", "store"},
    "testing": BELOW_RUNTIME | {"runtime", "instances", "handle", "starting", "client", "app"},
    "cli": BELOW_RUNTIME
    | {"runtime", "instances", "handle", "operating", "talking", "schedule", "client", "app", "audit", "testing"},
    "": VOCABULARY
    | DEFINITIONS
    | {"app", "client", "handle", "instances", "operating", "payloads", "runtime", "schedule"},  # public names
}

EXCEPTIONS = {
    ("handle", "client"): "for the type alone: a handle talks through the client that made it",
    ("operating", "handle"): "for the type alone: a fork is given to who asked for it as a handle",
    ("context", "workflow"): "for the type alone: children are of workflows, whose code gets a context",
    ("context", "activity"): "for the type alone: what is to be undone is undone by an activity",
    ("schedule_times", "schedule"): "for the type alone: functions of a schedule, which checks itself with them",
    ("wire.manifest", "broker.port"): "TopicSpec is a value of the manifest that the port takes as it is",
}
"""Known, with their reasons."""

PORTS = {"broker": "broker.port", "store": "store.port"}
BEHIND_THE_PORTS = {
    "app": "chooses broker and database by URL",
    "audit": "compares and rewrites rows: it works on the tables themselves",
    "runtime.node": "puts a process together",
    "runtime.worker": "hands the database of users' sessions to attempts",
    "runtime.attempt": "runs the users' transaction: its own row goes into that, through the store's functions",
    "runtime.attempt_transaction": "is that transaction",
}
"""The shell may know the two ports. Who knows what is behind one is named here, with the reason."""
HOW_TO_WAIT = {("store.database", name) for name in ("finished", "first_done", "seen", "CUT_OFF_S")}
"""How a call of the database is awaited to its end, whoever makes it. They know no database."""

THIRD_PARTY = {
    "sqlalchemy": {
        "store",
        "audit",
        "testing.sessions",
        "runtime.attempt",
        "runtime.attempt_transaction",
        "runtime.sync_session",
    },
    "asyncpg": {"store"},
    "asyncmy": {"store"},
    "aiosqlite": {"store"},
    "sqlite3": {"store", "broker.embedded", "testing.sessions"},
    "aiokafka": {"broker.kafka", "cli.kafka"},
    "faust": {"broker.kafka"},
    "mode": {"broker.kafka"},
    "cloudevents": {"wire.sdk", "client"},
    "cryptography": {"payloads"},
    "fsspec": {"payloads"},
    "typer": {"cli"},
    "rich": {"cli"},
}
"""Who may use what: a module, or a package with all that is in it. SQLAlchemy also where the command line counts and
compares rows (`cli.*`), and for the type of `ctx.session` (`activity`)."""


def short(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".")


def layer(module: str) -> str:
    return short(module).partition(".")[0]


def within(module: str, places: set[str]) -> bool:
    return any(short(module) == place or short(module).startswith(f"{place}.") for place in places)


def test_every_module_is_in_a_layer() -> None:
    assert {layer(module) for module in modules()} == set(MAY_USE)


def test_layers_go_down() -> None:
    """MAY_USE itself must have no circle: each line uses lines that stand before it."""
    seen: set[str] = set()
    for name, used in MAY_USE.items():
        assert used <= seen, f"{name or PACKAGE} may use {sorted(used - seen)}, which stand after it"
        seen.add(name)


def test_imports_go_down_only() -> None:
    wrong = []
    for module in modules():
        for each in imports(module):
            if not is_ours(each.target) or layer(each.target) == layer(module):
                continue
            known = (short(module), short(each.target)) in EXCEPTIONS
            if layer(each.target) not in MAY_USE[layer(module)] and not known:
                wrong.append(f"{module}:{each.line} imports {each.target}")
    assert not wrong, "\n".join(wrong)


def test_no_exception_outlives_its_import() -> None:
    there = {(short(module), short(each.target)) for module in modules() for each in imports(module)}
    assert set(EXCEPTIONS) <= there


def test_the_shell_knows_ports_and_not_what_is_behind_them() -> None:
    wrong = {}
    for module in modules():
        if layer(module) not in ("runtime", "client", "instances", "app", "audit"):
            continue
        for each in imports(module):
            port = PORTS.get(layer(each.target)) if is_ours(each.target) else None
            harmless = (short(each.target), each.name) in HOW_TO_WAIT
            if port is not None and short(each.target) != port and not harmless:
                wrong[short(module)] = f"{module}:{each.line} imports {each.target}, not {port}"
    assert wrong.keys() == BEHIND_THE_PORTS.keys(), wrong


def test_the_brokers_do_not_know_each_other() -> None:
    for module in modules():
        for one, other in (("broker.kafka", "broker.embedded"), ("broker.embedded", "broker.kafka")):
            if within(module, {one}):
                assert not [each for each in imports(module) if within(each.target, {other})], module


def test_libraries_stay_where_they_belong() -> None:
    wrong = []
    for module in modules():
        for each in imports(module):
            library = each.target.partition(".")[0]
            places = THIRD_PARTY.get(library)
            if places is None or within(module, places) or each.for_types:
                continue
            if library == "sqlalchemy" and layer(module) == "cli":
                continue
            wrong.append(f"{module}:{each.line} imports {each.target}")
    assert not wrong, "\n".join(wrong)


# -- the core ------------------------------------------------------------------------------------------------------
CORE = [module for module in modules() if layer(module) == "engine"]

CORE_LIBRARIES = {
    *("__future__", "builtins", "collections", "contextlib", "dataclasses", "functools", "heapq", "itertools", "types"),
    *("asyncio", "contextvars", "threading", "importlib", "inspect", "logging", "sys", "traceback"),
    *("bisect", "datetime", "decimal", "hashlib", "math", "random", "re", "uuid", "zlib"),
    *("json", "annotationlib", "typing", "typing_extensions", "msgspec", "orjson", "pydantic", "pydantic_core"),
}
"""What the core may import: values, codecs, introspection. `asyncio` for its tasks and futures, `threading` for a
thread-local, `importlib` for the classes of errors; what of them may be used is said below."""

NAMES_ALLOWED = {
    "asyncio": {
        *("AbstractEventLoop", "CancelledError", "Future", "Handle", "Task", "TimerHandle"),
        *("as_completed", "current_task", "ensure_future", "iscoroutine", "_get_running_loop"),
        *("events", "tasks"),
    },
    "random": {"Random"},  # seeded by the instance; the functions of the module share a seed with everybody
    "threading": {"local"},
    "uuid": {"UUID"},
    "datetime": {"UTC", "date", "datetime", "time", "timedelta", "timezone"},
}
ON_THE_WORKFLOWS_LOOP = {"engine.instance", "engine.waits", "engine.turns"}
"""Parts of a live instance: their coroutines are workflow code, which waits for durable things."""
WAITING = {"waits", "uses asyncio.timeout"}
CLOCKS = re.compile(r"(^|\.)(now|utcnow|today|fromtimestamp|time_ns|monotonic|monotonic_ns|perf_counter)$")
OUTSIDE = {"open", "input", "print", "exec", "eval", "__import__"}


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_values_and_codecs_only(module: str) -> None:
    foreign = {e.target.partition(".")[0] for e in imports(module) if not is_ours(e.target)} - CORE_LIBRARIES
    assert not foreign
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module in NAMES_ALLOWED:
            assert {alias.name for alias in node.names} <= NAMES_ALLOWED[node.module], f"line {node.lineno}"


@pytest.mark.parametrize("module", CORE)
def test_the_core_waits_for_nothing_and_looks_at_no_clock(module: str) -> None:
    mine = short(module) in ON_THE_WORKFLOWS_LOOP
    found = [f"line {line}: {what}" for line, what in _forbidden(tree(module)) if not (mine and what in WAITING)]
    assert not found, "\n".join(found)


def _forbidden(parsed: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed):
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield node.lineno, "waits"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = NAMES_ALLOWED.get(node.value.id)
            if node.value.id != "datetime" and allowed is not None and node.attr not in allowed:
                yield node.lineno, f"uses {node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OUTSIDE:
            yield node.lineno, f"calls {node.func.id}()"
        if isinstance(node, ast.Call) and CLOCKS.search(ast.unparse(node.func)):
            yield node.lineno, f"asks a clock: {ast.unparse(node.func)}()"


@pytest.mark.parametrize(
    "code",
    [
        "async def f(): await g()",
        "asyncio.sleep(1)",
        "random.random()",
        "datetime.now()",
        "datetime.datetime.utcnow()",
        "uuid.uuid4()",
        "open('x')",
        "threading.Thread()",
    ],
)
def test_what_is_forbidden_is_found(code: str) -> None:
    assert list(_forbidden(ast.parse(code)))
