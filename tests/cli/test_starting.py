"""A command that needs no app begins at once: what takes long to load is loaded by commands that need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {"faust", "aiokafka", "sqlalchemy", "asyncpg", "rich"}
PROGRAM = """
import sys
from romancy_stream.cli import main
try:
    main()
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["worker", "--help"], ["doctor", "--help"], ["verify", "--help"], ["topics", "--help"]],
    ids=" ".join,
)
def test_help_loads_no_database_and_no_broker(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout
    loaded = set(done.stderr.split())
    assert "typer" in loaded
    assert not loaded & SLOW
