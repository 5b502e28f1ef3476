"""Workflows and activities by name: what one process can run. An app has one; a library may fill one of its own for
apps to include.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from romancy_stream.activity import Activity
from romancy_stream.errors import ConfigurationError
from romancy_stream.workflow import Workflow

W = TypeVar("W", bound=Workflow[Any, Any])
A = TypeVar("A", bound=Activity[Any, Any])
Definition = Workflow[Any, Any] | Activity[Any, Any]


class Registry:
    """`workflows` and `activities` are live read-only views. ConfigurationError for two functions of one name."""

    def __init__(self) -> None:
        self._workflows: dict[str, Workflow[Any, Any]] = {}
        self._activities: dict[str, Activity[Any, Any]] = {}

    @property
    def workflows(self) -> Mapping[str, Workflow[Any, Any]]:
        return MappingProxyType(self._workflows)

    @property
    def activities(self) -> Mapping[str, Activity[Any, Any]]:
        return MappingProxyType(self._activities)

    def add_workflow(self, workflow: W) -> W:
        _check(self._workflows.setdefault(workflow.name, workflow), workflow)
        return workflow

    def add_activity(self, activity: A) -> A:
        _check(self._activities.setdefault(activity.name, activity), activity)
        return activity

    def include(self, source: ModuleType | Registry) -> None:
        """Everything that another registry holds, or that a module defines or imports at its top level."""
        if isinstance(source, Registry):
            found: list[Any] = [*source._workflows.values(), *source._activities.values()]
        elif isinstance(source, ModuleType):
            found = list(vars(source).values())
        else:
            raise ConfigurationError(f"include takes a module or a Registry, not {source!r}")
        for each in found:
            if isinstance(each, Workflow):
                self.add_workflow(each)
            elif isinstance(each, Activity):
                self.add_activity(each)

    def resolve(self) -> None:
        """Resolves all type hints. ConfigurationError names the function and the parameter."""
        for workflow in self._workflows.values():
            workflow.resolve()
        for activity in self._activities.values():
            activity.resolve()


def _check(known: Definition, new: Definition) -> None:
    if known.function is not new.function:
        raise ConfigurationError(
            f"two functions for {new.parameters.what}: {_place(known.function)} and {_place(new.function)}; "
            "give one of them another name="
        )


def _place(function: Any) -> str:
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{function.__module__}.{function.__qualname__}{where}"
