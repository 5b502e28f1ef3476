"""The topics that an app needs, from the contract's `topics/manifest.json`. Reads that file, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from romancy_stream.broker.port import TopicSpec
from romancy_stream.contract import contract_path
from romancy_stream.errors import ConfigurationError

# Kafka's own rule for topic names.
MAX_TOPIC_CHARS: Final = 249
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


def topic_specs(namespace: str, partitions: int, queues: Iterable[str] = ("default",)) -> list[TopicSpec]:
    """`commands`, `results` and `events` get `partitions`, because instance n lives in partition n of each; a task
    queue gets as many. How many replicas is the broker's default."""
    specs: list[TopicSpec] = []
    for topic in _manifest()["topics"]:
        count = topic["partitions"]
        places = [{"ns": namespace}]
        if "{queue}" in topic["name"]:
            places = [{"ns": namespace, "queue": queue} for queue in queues]
        for place in places:
            specs.append(
                TopicSpec(_name(topic["name"], place), partitions if count == "{partitions}" else count, _config(topic))
            )
    return specs


def _name(pattern: str, place: Mapping[str, str]) -> str:
    for word, part in place.items():
        if not _NAME.fullmatch(part):
            what = "queue" if word == "queue" else "app"
            raise ConfigurationError(
                f"the {what} name {part!r} cannot be part of a topic's name: letters, digits, '.', '_' and '-' can"
            )
    name = pattern.format(**place)
    if len(name) > MAX_TOPIC_CHARS:
        raise ConfigurationError(f"the topic name {name!r} has more than {MAX_TOPIC_CHARS} characters")
    return name


def _config(topic: Mapping[str, Any]) -> dict[str, str]:
    config: dict[str, str] = topic["config"]
    return dict(config)


@cache
def _manifest() -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(contract_path("topics", "manifest.json").read_text("utf-8"))
    return manifest
