"""House rules that a program can check, over every file of the repository. Each list of exceptions is a ratchet: it
names what was there when the rule came, and an entry whose reason is gone has to go with it.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.modules import REPO

FUNCTION_LINES_LIMIT = 70
FILE_LINES_LIMIT = 600

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[tuple[str, str], str] = {}

SLEEPS = {
    "tests/broker/kafka_member.py": (1, "a producer's rhythm, in a process that is killed"),
    "tests/broker/test_kafka_batches.py": (4, "a handler that takes its time, a process that is frozen"),
    "tests/broker/test_kafka_chaos.py": (1, "a producer's rhythm"),
    "tests/broker/test_kafka_readers.py": (2, "longer than a session timeout is what the test is about"),
    "tests/chaos/program.py": (3, "work that takes a while, and a producer's rhythm, in a process that is killed"),
    "tests/chaos/scene.py": (1, "a producer's rhythm"),
    "tests/cli/test_worker.py": (1, "polls a process in a plain test"),
    "tests/engine/test_core.py": (1, "workflow code: a durable timer"),
    "tests/engine/test_edges.py": (2, "workflow code: durable timers beyond the calendar"),
    "tests/runtime/test_worker_timeouts.py": (1, "an activity that takes longer than its timeout"),
    "tests/support/waiting.py": (1, "the one place that polls"),
}
"""How often a test file may sleep, and why that is not waiting for a condition. `sleep(0)` is no sleep: it lets tasks
that are ready run."""

HOSTS = {
    *("example.com", "example.org"),
    *("cloudevents.io", "json-schema.org", "maven.apache.org", "www.w3.org", "localhost", "127.0.0.1"),
}
"""Hosts that files may name: specifications, schemas and places that do not exist."""
MACHINE_NEUTRAL = {"/", "/tmp", "/home", "/root", "/src", "/app"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".sql", ".xml", ".sh", ""}


@cache
def files() -> tuple[str, ...]:
    """Committed, or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(name for name in listed.stdout.splitlines() if (REPO / name).is_file())


@cache
def text(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def python_files() -> Iterator[tuple[str, ast.Module]]:
    for name in files():
        if name.endswith(".py") or name == "tools/services":
            yield name, ast.parse(text(name))


def test_files_are_short() -> None:
    long = {name for name, _ in python_files() if text(name).count("\n") > FILE_LINES_LIMIT}
    assert long == LONG_FILES.keys()


def test_functions_are_short() -> None:
    long = {
        (name, node.name)
        for name, parsed in python_files()
        for node in ast.walk(parsed)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_LIMIT
    }
    assert long == LONG_FUNCTIONS.keys()


def test_every_module_says_why_it_exists() -> None:
    silent = [name for name, parsed in python_files() if parsed.body and not ast.get_docstring(parsed)]
    assert not silent


def test_tests_wait_for_conditions_and_do_not_sleep() -> None:
    found = Counter(
        name
        for name, parsed in python_files()
        if name.startswith("tests/")
        for node in ast.walk(parsed)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep")
        and ast.unparse(node.args[0]) != "0"
    )
    more = {name: count for name, count in found.items() if count > SLEEPS.get(name, (0, ""))[0]}
    assert not more, "use tests.support.eventually"
    fewer = {name: found[name] for name, (count, _) in SLEEPS.items() if found[name] < count}
    assert not fewer, "take them off the list"


def test_hosts_that_are_named_are_known() -> None:
    found = {
        (host.partition(":")[0], name)
        for name in files()
        if Path(name).suffix in TEXT_SUFFIXES
        for host in re.findall(r"https?://([^/\s\"'`)<>\]}{]+)", text(name))
    }
    assert not {(host, name) for host, name in found if "." in host and host not in HOSTS}


def test_no_file_knows_the_machine_that_it_was_written_on() -> None:
    """Neither where the checkout stands, nor what stands beside it."""
    here = {f"{folder}/" for folder in (REPO, REPO.parent) if str(folder) not in MACHINE_NEUTRAL}
    wrong = []
    for name in files():
        if Path(name).suffix not in TEXT_SUFFIXES:
            continue
        wrong += [f"{name}: {each}" for each in here if re.search(rf"(?<![\w./-]){re.escape(each)}", text(name))]
        for path in re.findall(r"(?<![\w./])(?:\.\./)+[\w.-]+", text(name)):
            beside = (REPO / name).parent / path
            if not beside.resolve().is_relative_to(REPO):
                wrong.append(f"{name}: {path}")
    assert not wrong
