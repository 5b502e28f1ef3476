"""Fenced blocks of Markdown documents, and how each of them is run. A document is a session: its blocks run from top to
bottom in one folder, with the embedded broker and SQLite, as a reader would paste them.

A comment on the line above a block says what is special about it:

    <!-- test: file shop.py -->       python: saved under that name, and run
    <!-- test: continues -->          python: run as one program with the blocks before it
    <!-- test: raises -->             python: ends with an error
    <!-- test: output -->             text: what the block before it printed; "…" stands for anything
    <!-- test: database NAME -->      sql: each statement runs on the SQLite database of the app NAME
    <!-- test: services NAME -->      needs real servers: run by tests/test_acceptance.py
    <!-- test: not here: REASON -->   shown, not run

Without a comment `python` and `sh` are run; other languages are only shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.modules import REPO

BLOCK_TIMEOUT_S = 240  # a second of work; starting several programs on a busy machine takes longer
RUN = {"python", "sh"}
_FENCE = re.compile(
    r"^(?:<!-- test: (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Snippet:
    """`line` is that of the opening fence."""

    document: str
    line: int
    language: str
    code: str
    mark: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def snippets(document: str) -> Iterator[Snippet]:
    text = (REPO / document).read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Snippet(document, line, match["language"], match["code"], match["mark"] or "")


def environment() -> dict[str, str]:
    """Of a reader's shell: our programs on the path, and no setting of another app. Servers are those of the tests."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ROMANCY_", "PYTHON"))}
    env |= {name: value for name, value in os.environ.items() if name == "ROMANCY_SERVICES_DIR"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env


def shell(code: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return _run(["bash", "-euo", "pipefail", "-c", code], folder, env)


def _python(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, "-W", "error", str(script)], folder, {})


def _run(command: list[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment() | env,
        capture_output=True,
        text=True,
        timeout=BLOCK_TIMEOUT_S,
        check=False,
    )


class Session:
    """One reader of one document."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = ""
        self._printed = ""

    def run(self, snippet: Snippet) -> None:
        """AssertionError when the block does not do what the document says."""
        mark = snippet.mark
        if mark == "output":
            self._compare(snippet)
        elif mark.startswith("database "):
            self._query(snippet, mark.removeprefix("database "))
        elif mark.startswith(("services ", "not here: ")) or snippet.language not in RUN:
            return
        elif snippet.language == "sh":
            self._check(snippet, shell(snippet.code, self._folder))
        else:
            self._program = self._program + "\n" + snippet.code if mark == "continues" else snippet.code
            name = mark.removeprefix("file ") if mark.startswith("file ") else f"block_{snippet.line}.py"
            script = self._folder / name
            script.write_text(self._program, encoding="utf-8")
            self._check(snippet, _python(script, self._folder))

    def _check(self, snippet: Snippet, done: subprocess.CompletedProcess[str]) -> None:
        self._printed = done.stdout
        failed = done.returncode != 0
        assert failed == (snippet.mark == "raises"), f"{snippet}\n{done.stdout}\n{done.stderr}"

    def _query(self, snippet: Snippet, app: str) -> None:
        with contextlib.closing(sqlite3.connect(self._folder / ".romancy" / app / "state.db")) as connection:
            for statement in snippet.code.split(";"):
                try:
                    connection.execute(statement).fetchall()
                except sqlite3.Error as error:
                    raise AssertionError(f"{snippet}: {error}") from error

    def _compare(self, snippet: Snippet) -> None:
        pattern = ".*".join(re.escape(part) for part in re.split(r"\s*…", snippet.code.strip()))
        printed = "\n".join(line.rstrip() for line in self._printed.splitlines()).strip()
        assert re.fullmatch(pattern, printed, re.DOTALL), f"{snippet} says\n{snippet.code}\nand it printed\n{printed}"
