"""Workflows and activities by name: what one process can run. An app has one; a library may fill one of its own for
apps to include. A workflow may be there in several versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeVar

from romancy_stream.activity import Activity
from romancy_stream.engine.definitions import Versions
from romancy_stream.errors import ConfigurationError
from romancy_stream.events import EventType
from romancy_stream.wire.event import RESERVED_PREFIX
from romancy_stream.workflow import Workflow, is_workflow_class

W = TypeVar("W", bound=Workflow[Any, Any])
A = TypeVar("A", bound=Activity[Any, Any])
E = TypeVar("E", bound=EventType[Any])
_OURS: Final = "romancy_stream."
Definition = Workflow[Any, Any] | Activity[Any, Any]


class Workflows(Versions[Workflow[Any, Any]]):
    """By name, the version that new runs get: the one that says so, else the one that was defined last."""

    def __init__(self) -> None:
        self._newest: dict[str, Workflow[Any, Any]] = {}
        self._all: dict[tuple[str, str | None], Workflow[Any, Any]] = {}

    def __getitem__(self, name: str) -> Workflow[Any, Any]:
        return self._newest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._newest)

    def __len__(self) -> int:
        return len(self._newest)

    def at(self, name: str, version: str | None) -> Workflow[Any, Any] | None:
        return self._all.get((name, version))

    def all(self) -> list[Workflow[Any, Any]]:
        """Of all versions, in the order of their definition."""
        return list(self._all.values())

    def add(self, workflow: Workflow[Any, Any]) -> None:
        """ConfigurationError."""
        if workflow.name.startswith(RESERVED_PREFIX) and not workflow.code.__module__.startswith(_OURS):
            raise ConfigurationError(
                f"{workflow.parameters.what}: names that begin with {RESERVED_PREFIX!r} are the engine's own"
            )
        known = self._all.get((workflow.name, workflow.version))
        if known is not None:
            _check(known, workflow)
            return
        newest = self._newest.get(workflow.name)
        if newest is not None and newest.is_default and workflow.is_default:
            raise ConfigurationError(
                f"{workflow.parameters.what}: versions {newest.version!r} and {workflow.version!r} are both the default"
            )
        self._all[workflow.name, workflow.version] = workflow
        if newest is None or not newest.is_default:
            self._newest[workflow.name] = workflow


class Registry:
    """`workflows` and `activities` are live read-only views. ConfigurationError for two functions of one name, or of
    one name and version."""

    def __init__(self) -> None:
        self._workflows = Workflows()
        self._activities: dict[str, Activity[Any, Any]] = {}
        self._events: dict[str, EventType[Any]] = {}

    @property
    def workflows(self) -> Workflows:
        return self._workflows

    @property
    def activities(self) -> Mapping[str, Activity[Any, Any]]:
        return MappingProxyType(self._activities)

    @property
    def events(self) -> Mapping[str, EventType[Any]]:
        """What was declared of types of events, by type."""
        return MappingProxyType(self._events)

    def add_event(self, event: E) -> E:
        """ConfigurationError for two declarations of one type that differ."""
        known = self._events.setdefault(event.type, event)
        if known != event:
            raise ConfigurationError(f"two declarations of one type of events differ: {known} and {event}")
        return event

    def add_workflow(self, workflow: W) -> W:
        self._workflows.add(workflow)
        return workflow

    def add_activity(self, activity: A) -> A:
        _check(self._activities.setdefault(activity.name, activity), activity)
        if activity.compensate is not None:
            self.add_activity(activity.compensate)
        return activity

    def include(self, source: ModuleType | Registry) -> None:
        """Everything that another registry holds, or that a module defines or imports at its top level."""
        if isinstance(source, Registry):
            found: list[Any] = [*source._workflows.all(), *source._activities.values(), *source._events.values()]
        elif isinstance(source, ModuleType):
            found = list(vars(source).values())
        else:
            raise ConfigurationError(f"include takes a module or a Registry, not {source!r}")
        for each in found:
            if isinstance(each, Workflow):
                self.add_workflow(each)
            elif isinstance(each, type) and is_workflow_class(each):
                self.add_workflow(Workflow.of(each))
            elif isinstance(each, Activity):
                self.add_activity(each)
            elif isinstance(each, EventType):
                self.add_event(each)

    def resolve(self) -> None:
        """Resolves all type hints. ConfigurationError names the function and the parameter."""
        for workflow in self._workflows.all():
            workflow.resolve()
        for activity in self._activities.values():
            activity.resolve()
        for event in self._events.values():
            event.resolve()


def _check(known: Definition, new: Definition) -> None:
    one, other = _code(known), _code(new)
    if one is not other:
        versions = "" if isinstance(new, Activity) else ", or a version="
        raise ConfigurationError(
            f"two functions for {new.parameters.what}: {_place(one)} and {_place(other)}; "
            f"give one of them another name={versions}"
        )


def _code(definition: Definition) -> Any:
    return definition.code if isinstance(definition, Workflow) else definition.function


def _place(function: Any) -> str:
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{function.__module__}.{function.__qualname__}{where}"
