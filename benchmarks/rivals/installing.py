"""Gets a rival from the package registries, into a directory of its own that git ignores. May run pip, npm and go, and
write below that directory. What cannot be had is `Unavailable`, with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.stage import REPO

ENVIRONMENTS: Final = REPO / ".venv-rivals"
INSTALL_LIMIT_S: Final = 3_600.0
"""Temporal's server is compiled: five minutes of two cores, and other things may run on them."""
REASON_LIMIT_CHARACTERS: Final = 300


class Unavailable(Exception):
    """Not to be had here."""


@dataclass(frozen=True, slots=True)
class Packages:
    """What a rival is installed from. Versions are exact: figures of an unknown version are worth nothing."""

    version: str  # of the rival
    pypi: tuple[str, ...]
    npm: tuple[str, ...] = ()
    go_module: str = ""  # "module@version"
    go_programs: tuple[str, ...] = ()  # packages below the module, each of which becomes bin/<its last name>


@dataclass(frozen=True, slots=True)
class Environment:
    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def npm(self, *path: str) -> Path:
        return self.folder.joinpath("npm", "node_modules", *path)

    def go(self, program: str) -> str:
        return str(self.folder / "go" / "bin" / program)


def installed(name: str, packages: Packages) -> Environment:
    """Makes it when it is not there, or has been made from something else."""
    environment = Environment(ENVIRONMENTS / name)
    stamp = environment.folder / ".installed"
    if not stamp.exists() or stamp.read_text() != repr(packages):
        shutil.rmtree(environment.folder, ignore_errors=True)
        _install(environment, packages)
        stamp.write_text(repr(packages))
    return environment


def _install(environment: Environment, packages: Packages) -> None:
    run([sys.executable, "-m", "venv", str(environment.folder)])
    run([environment.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages.pypi])
    if packages.npm:
        folder = environment.folder / "npm"
        folder.mkdir()
        # without scripts: the binaries are inside the packages, and what the scripts do is to count installations
        run([_tool("npm"), "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", *packages.npm])
    if packages.go_module:
        _build(environment.folder / "go", packages)


def _build(folder: Path, packages: Packages) -> None:
    """As a dependency of an empty module: so its own go.sum is checked, and it is compiled as it was released."""
    go = _tool("go")
    module, _, version = packages.go_module.partition("@")
    programs = [f"{module}/{program}" for program in packages.go_programs]
    folder.mkdir()
    run([go, "mod", "init", "rivals"], folder)
    run([go, "get", *(f"{program}@{version}" for program in programs)], folder)
    run([go, "build", "-o", f"{folder / 'bin'}{os.sep}", *programs], folder)


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


def run(command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
    """To the end; what it says when it fails is the reason."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{Path(command[0]).name} did not end within {INSTALL_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"{Path(command[0]).name} failed: {reason(done.stdout)}")


def reason(printed: str) -> str:
    """The last thing that was said, which is where tools tell what went wrong."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1][:REASON_LIMIT_CHARACTERS] if lines else "it said nothing"
