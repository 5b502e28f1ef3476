"""The examples of the wire contract start the app that the README has: the same event in every language, and data that
its workflow takes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from romancy_stream.wire.codec import decode
from romancy_stream.wire.event import WireEvent
from romancy_stream.wire.record import Record
from tests.support.snippets import snippets

CONTRACT = "topics/README.md"
HEADER = re.compile(r"-H (\S+?)=(\S+)")


def block(document: str, language: str, needle: str) -> str:
    (found,) = [each.code for each in snippets(document) if each.language == language and needle in each.code]
    return found


def program(document: str, needle: str) -> dict[str, Any]:
    """What a Python block defines; its `main` is not run."""
    namespace: dict[str, Any] = {"__name__": "documented"}
    exec(compile(block(document, "python", needle), document, "exec", dont_inherit=True), namespace)
    return namespace


def from_python() -> Record:
    message = program(CONTRACT, "AIOKafkaProducer")["start"]("A-1")
    return Record("shop.commands", 0, 0, message.key.encode(), message.value, tuple(message.headers.items()), 0)


def from_kcat() -> Record:
    command = block(CONTRACT, "sh", "ce_type=romancy.workflow.start")
    (value,) = re.findall(r"printf '%s' '(.+)'", command)
    headers = tuple((name, text.encode()) for name, text in HEADER.findall(command))
    return Record("shop.commands", 0, 0, b"order-A-1", value.encode(), headers, 0)


def from_json() -> Record:
    headers = (("content-type", b"application/cloudevents+json"),)
    value = block(CONTRACT, "json", "romancy.workflow.start").encode()
    return Record("shop.commands", 0, 0, None, value, headers, 0)


@pytest.mark.parametrize("example", [from_python, from_kcat, from_json])
def test_an_example_is_a_start_of_the_readmes_app(example: Any) -> None:
    event = decode(example())
    assert isinstance(event, WireEvent), event
    assert (event.id, event.source, event.type) == ("order-A-1/start", "/shop/web", "romancy.workflow.start")
    assert event.subject == "order-A-1"
    shop = program("README.md", 'App("shop")')
    assert event.extensions["romancyworkflow"] == shop["checkout"].name
    assert event.data is not None
    order = shop["Order"].model_validate_json(event.data)
    assert (order.id, order.customer, str(order.total)) == ("A-1", "c-7", "19.90")


@pytest.mark.parametrize("language", ["java", "go"])
def test_the_sdks_that_are_not_here_get_the_same_data(language: str) -> None:
    code = block(CONTRACT, language, "romancy.workflow.start").replace('\\"', '"')
    (data,) = re.findall(r'\{"id": .*?\}', code)
    sent = decode(from_json())
    assert isinstance(sent, WireEvent)
    assert json.loads(data) == json.loads(sent.data or b"")
