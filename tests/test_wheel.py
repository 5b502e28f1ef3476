"""What is installed holds both public contracts, whole, and makes no top-level package of them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_ships_the_contracts(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=270)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "topics", "storage", "romancy_stream"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    for file in tracked:
        inside = file if file.startswith("romancy_stream/") else f"romancy_stream/_contract/{file}"
        assert inside in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"romancy_stream"}
