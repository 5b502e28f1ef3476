"""ARCHITECTURE.md is true: every module is in the code map, every name in it exists, and the tests that it names are
there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.modules import PACKAGE, REPO, modules

TEXT = (REPO / "ARCHITECTURE.md").read_text(encoding="utf-8")


def mapped() -> list[str]:
    """Paths below the repository, from the headings and tables of the code map."""
    found = []
    for section in TEXT.partition("## Code map")[2].split("\n### ")[1:]:
        heading = re.match(rf"`({PACKAGE}/[\w/]*)`", section)
        assert heading is not None, section[:40]
        found += [heading[1] + name for name in re.findall(r"^\| `([\w.]+)` \| ", section, re.MULTILINE)]
    return found


def test_every_module_is_in_the_code_map_and_nothing_else() -> None:
    there = {path.relative_to(REPO).as_posix() for path in modules().values() if _has_code(path.read_text("utf-8"))}
    assert sorted(mapped()) == sorted(set(mapped()))
    assert set(mapped()) == there


def _has_code(source: str) -> bool:
    """More than a docstring."""
    return len(ast.parse(source).body) > 1


def test_every_module_of_the_map_is_described() -> None:
    rows = re.findall(r"^\| `[\w.]+\.py` \|(.*)\|$", TEXT, re.MULTILINE)
    assert len(rows) == len(mapped())
    assert all(len(row.strip()) > 3 for row in rows)


def test_paths_that_are_named_exist() -> None:
    text = TEXT.partition("## Code map")[0]
    for path in re.findall(r"`((?:tests|topics|storage|examples)/[\w/.]*)`", TEXT):
        assert (REPO / path).exists(), path
    for path in re.findall(r"`((?:\w+/)*\w+\.py|\w+/)`", text):
        assert (REPO / PACKAGE / path).exists() or (REPO / path).exists(), path


@pytest.mark.parametrize(("section", "rows"), [("Invariants", 16), ("Mistakes of other engines", 18)])
def test_each_row_of_a_section_names_tests_that_exist(section: str, rows: int) -> None:
    table = TEXT.partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    assert len(found) >= rows
    for number, tests in found:
        named = re.findall(r"`(tests/[\w/.]+)::(test_\w+)`", tests)
        assert named, f"{section} {number} names no test"
        for path, name in named:
            parsed = ast.parse((REPO / path).read_text(encoding="utf-8"))
            defined = {n.name for n in ast.walk(parsed) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert name in defined, f"{path}::{name}"
