"""Reads the package as source: which modules there are and what they import. For the tests that keep the structure
true; it imports nothing of the package and runs none of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PACKAGE = "romancy_stream"


@dataclass(frozen=True, slots=True)
class Import:
    """`module` imports `target`, both by full name; a target of our own is a module, and `name` what is taken out of
    it, or empty. `for_types`: under TYPE_CHECKING, so that nothing is imported when the program runs."""

    module: str
    target: str
    name: str
    line: int
    for_types: bool


@cache
def modules() -> dict[str, Path]:
    """Full name -> file. A package goes by its own name, without `__init__`."""
    found = {}
    for path in sorted((REPO / PACKAGE).rglob("*.py")):
        found[".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[Import]:
    """All of them, wherever in the file they stand. There are no relative imports in this package."""
    for_types = set(_lines_for_types(tree(module)))
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, "", node.lineno, node.lineno in for_types)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                target, name = (full, "") if full in modules() else (node.module, alias.name)
                yield Import(module, target, name, node.lineno, node.lineno in for_types)


def _lines_for_types(parsed: ast.Module) -> Iterator[int]:
    for node in ast.walk(parsed):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from range(child.lineno, (child.end_lineno or child.lineno) + 1)


def is_ours(target: str) -> bool:
    return target == PACKAGE or target.startswith(f"{PACKAGE}.")
