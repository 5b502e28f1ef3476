"""Finds the app that a command is about: `MODULE:APP`, as ASGI servers name theirs. Imports user code, and says
clearly what is wrong with the name or with the module."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from romancy_stream.cli import output

if TYPE_CHECKING:
    from romancy_stream.app import App

    Loaded = App
else:
    Loaded = object  # for typer, which looks at the annotations of commands; an App takes long to load


def load_app(target: str) -> App:
    """BadParameter (exit code 2) for anything that does not lead to an `App`."""
    from romancy_stream.app import App

    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise typer.BadParameter(f"{target!r} is not of the form MODULE:APP, as in shop:app")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise typer.BadParameter(f"{module_name!r} has no attribute {path!r}{_apps_of(module_name)}")
        found = getattr(found, name)
    if not isinstance(found, App):
        raise typer.BadParameter(f"{target} is of type {type(found).__name__}, not an App{_apps_of(module_name)}")
    return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise typer.BadParameter(f"there is no module {name!r} in {os.getcwd()} or on sys.path") from None
        raise _broken(name, error) from error
    except Exception as error:  # whatever a user's module raises
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> typer.BadParameter:
    if output.debug():
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    at = next(
        (f" ({frame.filename}:{frame.lineno})" for frame in reversed(frames) if "importlib" not in frame.filename), ""
    )
    return typer.BadParameter(f"importing {name!r} failed: {type(error).__name__}: {error}{at}")


def _apps_of(module_name: str) -> str:
    from romancy_stream.app import App

    names = sorted(name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, App))
    return f"; it has {', '.join(f'{module_name}:{name}' for name in names)}" if names else ""


Target = Annotated[
    Loaded,
    typer.Argument(parser=load_app, metavar="MODULE:APP", help="Where the app is, as in shop:app.", show_default=False),
]
