"""Type checkers agree with the API: right calls pass with the right types, wrong ones are reported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# A first run has no cache and type checks the libraries too.
CHECKER_TIMEOUT_S = 270

ALL_CASES = pytest.mark.parametrize(
    "cases",
    [
        "typing_cases.py",
        "typing_cases_app.py",
        "typing_cases_signals.py",
        "typing_cases_events.py",
        "typing_cases_children.py",
        "typing_cases_saga.py",
    ],
)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=CHECKER_TIMEOUT_S,
        check=False,
    )


@ALL_CASES
def test_mypy_agrees_with_the_cases(cases: str) -> None:
    checked = run("mypy", "--strict", "--follow-imports=silent", str(HERE / cases))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@ALL_CASES
def test_pyright_agrees_with_the_cases(cases: str, tmp_path: Path) -> None:
    settings = {
        "include": [cases],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    shutil.copy(HERE / cases, tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    checked = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path))
    if not checked.stdout.startswith("{"):
        pytest.skip(f"pyright cannot run here, it needs node: {checked.stderr[-300:]}")
    report = json.loads(checked.stdout)
    found = [f"{d['range']['start']['line'] + 1}: {d['message']}" for d in report["generalDiagnostics"]]
    assert found == []
    assert report["summary"]["filesAnalyzed"] == 1
