"""Where the two public contracts lie: `topics/` (the wire) and `storage/` (the tables). A wheel carries them inside the
package, a working copy has them beside it. Reads package data, nothing else."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from romancy_stream.errors import ConfigurationError


def contract_path(*parts: str) -> Traversable:
    """A file or folder of the contracts, as in `contract_path("storage", "migrations")`. May lie inside a zip file:
    use its own methods to read it."""
    package = files("romancy_stream")
    shipped = package.joinpath("_contract")
    root = shipped if shipped.is_dir() else Path(str(package)).parent
    found = root.joinpath(*parts)
    if not (found.is_file() or found.is_dir()):
        raise ConfigurationError(f"{'/'.join(parts)} is missing from this installation of romancy-stream: reinstall it")
    return found
