"""`topics/` and the code say the same: names, messages, limits, topics. What is written validates."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from romancy_stream.activity import activity
from romancy_stream.broker.port import TopicSpec
from romancy_stream.context import WorkflowContext
from romancy_stream.contract import contract_path
from romancy_stream.engine.commit import RecordedResult
from romancy_stream.engine.definitions import Publication
from romancy_stream.engine.failure import encode_error
from romancy_stream.engine.tasks import Task
from romancy_stream.errors import ConfigurationError
from romancy_stream.messaging import message_publication
from romancy_stream.runtime.worker_messages import Messages, read_task
from romancy_stream.wire import event as names
from romancy_stream.wire import malformed as m
from romancy_stream.wire.codec import decode, encode, header_bytes
from romancy_stream.wire.dead_letter import MAX_HEADERS_BYTES, MAX_VALUE_BYTES, dead_letter_event
from romancy_stream.wire.event import Topics, WireEvent
from romancy_stream.wire.manifest import topic_specs
from romancy_stream.wire.record import Record
from romancy_stream.workflow import workflow
from tests.engine.world import World
from tests.wire.making import STRUCTURED, record

ROOT = Path(__file__).parents[2] / "topics"
CORE: Final = {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}
TYPES = {
    value
    for name, value in vars(names).items()
    if name.isupper() and not name.startswith("X_") and isinstance(value, str) and value != names.RESERVED_PREFIX
}
EXTENSIONS = {value for name, value in vars(names).items() if name.startswith("X_")}
CHANNELS = {
    "commands": {
        names.START,
        names.CANCEL,
        names.SIGNAL,
        names.UPDATE,
        names.RETRY,
        names.RESET,
        names.FORK,
        names.DELETE,
        names.CHANNEL_PUBLISH,
        "user event",
    },
    "tasks": {names.TASK},
    "results": {names.ACTIVITY_COMPLETED, names.ACTIVITY_FAILED, names.TO_INSTANCE, names.TO_ENTITY},
    "events": {
        names.STARTED,
        names.COMPLETED,
        names.FAILED,
        names.CANCELLED,
        names.REJECTED,
        names.RECURRED,
        names.HISTORY_LARGE,
        names.ANSWERED,
        "user event",
    },
    "dlq": {names.DEAD_LETTER},
}


@cache
def schemas() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text("utf-8")) for path in (ROOT / "schemas").iterdir()}


@cache
def asyncapi() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "asyncapi.yaml").read_text("utf-8"))
    return document


@cache
def validator(schema: str) -> Draft202012Validator:
    registry = Registry().with_resources((name, Resource.from_contents(each)) for name, each in schemas().items())
    return Draft202012Validator({"$ref": schema}, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER)


def schema_of(event_type: str) -> str:
    return f"{event_type}.json" if event_type in TYPES else "user-event.json"


def as_json_event(headers: list[tuple[str, bytes]], value: bytes | None) -> dict[str, Any]:
    """A record in binary mode, in the JSON event format."""
    event: dict[str, Any] = {}
    for name, text in headers:
        event["datacontenttype" if name == "content-type" else name.removeprefix("ce_")] = text.decode()
    if value is not None:
        event["data"] = json.loads(value)
    return event


def problems(headers: list[tuple[str, bytes]], value: bytes | None) -> list[str]:
    event = as_json_event(headers, value)
    return [error.message for error in validator(schema_of(event["type"])).iter_errors(event)]


# -- names -------------------------------------------------------------------------------------------------------
def test_every_type_and_extension_has_a_schema_and_the_reverse() -> None:
    assert set(schemas()) == {f"{name}.json" for name in TYPES} | {"cloudevent.json", "error.json", "user-event.json"}
    for event_type in TYPES:
        assert schemas()[f"{event_type}.json"]["properties"]["type"] == {"const": event_type}
    assert set(schemas()["cloudevent.json"]["properties"]) == EXTENSIONS | CORE | {"data", "data_base64"}


def test_every_type_and_extension_is_in_the_asyncapi_document_and_the_reverse() -> None:
    messages = asyncapi()["components"]["messages"]
    assert {message["name"] for message in messages.values()} == TYPES | {"user event"}
    assert set(asyncapi()["components"]["schemas"]) == EXTENSIONS | {"CloudEventHeaders"}
    common = set(asyncapi()["components"]["schemas"]["CloudEventHeaders"]["properties"])
    assert common == {"content-type"} | {f"ce_{name}" for name in CORE - {"datacontenttype"}}
    used = {name for message in messages.values() for name in message["headers"]["allOf"][1]["properties"]}
    assert used == {"ce_type"} | {f"ce_{name}" for name in EXTENSIONS}


def test_asyncapi_and_schemas_ask_for_the_same() -> None:
    common = set(asyncapi()["components"]["schemas"]["CloudEventHeaders"]["required"])
    for message in asyncapi()["components"]["messages"].values():
        own = message["headers"]["allOf"][1]
        schema = schemas()[schema_of(message["name"])]
        required = {f"ce_{name}" for name in schema["required"] if name != "data"}
        assert common | set(own.get("required", ())) == required, message["name"]
        assert own["properties"]["ce_type"] == schema["properties"]["type"], message["name"]
        assert message["payload"] == {"$ref": f"./schemas/{schema_of(message['name'])}#/properties/data"}


def test_limits_are_those_of_the_code() -> None:
    properties = schemas()["cloudevent.json"]["properties"]
    assert properties["id"]["maxLength"] == m.MAX_DERIVED_ID_CHARS
    for name in ("source", "type", "subject", names.X_WORKFLOW, names.X_ACTIVITY_ID, names.X_NAME):
        assert properties[name]["maxLength"] == m.MAX_ID_CHARS
    assert f"{{1,{m.MAX_NAME_CHARS}}}" in schemas()["cloudevent.json"]["propertyNames"]["pattern"]
    readme = (ROOT / "README.md").read_text("utf-8")
    for limit in (m.MAX_DATA_BYTES, m.MAX_ID_CHARS, m.MAX_ATTRIBUTE_CHARS, m.MAX_ATTRIBUTES, m.MAX_FRACTION_DIGITS):
        assert f"{limit:,}" in readme
    assert f"{m.MAX_JSON_DEPTH} levels" in readme
    assert f"exponents of at most {m.MAX_EXPONENT_DIGITS} digits" in readme


# -- the AsyncAPI document -----------------------------------------------------------------------------------------
def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


def resolve(document: Any, pointer: str) -> Any:
    for part in pointer.strip("/").split("/"):
        document = document[part.replace("~1", "/").replace("~0", "~")]
    return document


def test_all_references_resolve() -> None:
    found = list(references(asyncapi()))
    assert found
    for reference in found:
        file, _, pointer = reference.partition("#")
        resolve(schemas()[Path(file).name] if file else asyncapi(), pointer)
    for schema in schemas().values():
        for reference in references(schema):
            assert reference in schemas()


def test_the_document_is_whole() -> None:
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(document["info"])
    for name, channel in document["channels"].items():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel["parameters"])
        members = {resolve(document, each["$ref"][1:])["name"] for each in channel["messages"].values()}
        assert members >= CHANNELS[name]
        # The engine hands commands over to other partitions by way of `results`.
        assert members == CHANNELS[name] | (CHANNELS["commands"] if name == "results" else set())
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        assert all(each["$ref"].startswith(f"{channel}/messages/") for each in operation["messages"])
    assert {operation["channel"]["$ref"] for operation in document["operations"].values()} == {
        f"#/channels/{name}" for name in CHANNELS
    }


def test_channels_are_the_topics_of_the_code() -> None:
    topics = Topics("{ns}")
    addresses = {name: channel["address"] for name, channel in asyncapi()["channels"].items()}
    assert addresses == {
        "commands": topics.commands,
        "tasks": topics.tasks("{queue}"),
        "results": topics.results,
        "events": topics.events,
        "dlq": topics.dead_letters,
    }


def test_examples_of_the_document_are_valid_events() -> None:
    for message in asyncapi()["components"]["messages"].values():
        for example in message.get("examples", ()):
            value = json.dumps(example["payload"]).encode()
            headers = [(name, text.encode()) for name, text in example["headers"].items()]
            assert problems(headers, value) == []
            assert isinstance(decode(record(*headers, value=value)), WireEvent)


# -- the schemas ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(schemas()))
def test_schemas_are_schemas_and_their_examples_valid(name: str) -> None:
    schema = schemas()[name]
    Draft202012Validator.check_schema(schema)
    for example in schema.get("examples", ()):
        assert list(validator(name).iter_errors(example)) == []
        for required in schema["required"]:
            less = {key: value for key, value in example.items() if key != required}
            assert not validator(name).is_valid(less), required


@pytest.mark.parametrize("name", sorted(set(schemas()) - {"cloudevent.json", "error.json"}))
def test_examples_are_read_and_written_as_they_stand(name: str) -> None:
    examples = schemas()[name]["examples"]
    assert examples
    for example in examples:
        read = decode(record(STRUCTURED, value=json.dumps(example).encode()))
        assert isinstance(read, WireEvent), read
        timed = WireEvent(
            read.id,
            read.source,
            read.type,
            read.subject,
            read.data,
            read.time or "2026-01-31T12:00:00Z",
            read.extensions,
        )
        written = as_json_event(*encode(timed))
        assert written == {"time": timed.time, "datacontenttype": "application/json", **example}
        assert list(validator(name).iter_errors(written)) == []


# -- what is really written ----------------------------------------------------------------------------------------
@activity(timeout=30)
async def charge(order: str) -> str:
    raise AssertionError("activities run in workers")


@workflow
async def checkout(ctx: WorkflowContext, order: str) -> str:
    receipt = await charge(order)
    ctx.publish_event(type="order.charged", data={"receipt": receipt}, subject=order)
    return receipt


def answer(_: dict[str, str], args: list[Any]) -> str:
    if args[0] == "bad":
        raise ValueError("the card was declined")
    return "r-77"


def test_what_the_engine_writes_is_what_the_contract_says() -> None:
    world = World(checkout, answers={"charge": answer}, partitions=4)
    world.start("checkout", "A-1", "good")
    world.start("checkout", "bad", "bad")
    world.start("checkout", {"not": "a string"}, "refused")
    world.start("nobody", None, "unknown")
    astray = WireEvent("s-1", "/x", names.START, "moved", b'"A-2"', None, {names.X_WORKFLOW: "checkout"})
    wrong_part = (world.part_of("moved") + 1) % 4
    world.send(replace(astray, time="2026-01-31T12:00:00Z"), wrong_part)
    for n in range(8):
        world.send(WireEvent(f"c-{n}", "/x", "romancy.nonsense", time="2026-01-31T12:00:00Z"), n % 4)
    world.run()
    written = {(row.topic, dict(row.headers)["ce_type"]) for row in world.outbox}
    assert written >= {
        ("shop.tasks.default", names.TASK),
        ("shop.events", names.STARTED),
        ("shop.events", names.COMPLETED),
        ("shop.events", names.FAILED),
        ("shop.events", names.REJECTED),
        ("shop.events", "order.charged"),
        ("shop.dlq", names.DEAD_LETTER),
        ("shop.results", names.START),
    }
    for row in world.outbox:
        headers = [(name, text.encode()) for name, text in row.headers]
        assert problems(headers, row.value) == [], row.headers
        channel = row.topic.split(".")[1]
        event_type = dict(row.headers)["ce_type"]
        allowed = CHANNELS[channel] | (CHANNELS["commands"] if channel == "results" else set())
        assert (event_type if event_type in TYPES else "user event") in allowed


@activity
async def refund(result: str) -> None:
    raise AssertionError("activities run in workers")


@activity(compensate=refund)
async def pay(order: str) -> str:
    raise AssertionError("activities run in workers")


@workflow
async def waits_after_paying(ctx: WorkflowContext, order: str) -> None:
    await pay(order)
    await ctx.sleep(60)
    raise ValueError("the deadline has passed")


def test_cancelling_and_compensating_is_what_the_contract_says() -> None:
    def refuse(_: dict[str, str], args: list[Any]) -> None:
        raise ValueError("the account is closed")

    world = World(waits_after_paying, answers={"pay": answer, "refund": refuse}, partitions=4)
    world.start("waits_after_paying", "A-1", "cancelled")
    world.start("waits_after_paying", "A-2", "failed")
    world.step()
    for n, subject in enumerate(("cancelled", "nobody")):
        data = b'{"reason":"customer called"}'
        world.send(WireEvent(f"c-{n}", "/desk", names.CANCEL, subject, data, "2026-01-31T12:00:00Z"), n)
    world.run()
    written = [dict(row.headers)["ce_type"] for row in world.outbox if row.topic == "shop.events"]
    assert Counter(written) == Counter({names.STARTED: 2, names.ANSWERED: 2, names.CANCELLED: 1, names.FAILED: 1})
    ends = [json.loads(row.value or b"") for row in world.outbox if b"compensation_failed" in (row.value or b"")]
    assert len(ends) == 2
    for row in world.outbox:
        if not row.topic.endswith(".results"):
            headers = [(name, text.encode()) for name, text in row.headers]
            assert problems(headers, row.value) == [], row.headers


def test_what_workers_write_is_what_the_contract_says() -> None:
    world = World(checkout)
    world.start("checkout", "A-1", "i")
    world.run()
    [row] = [row for row in world.outbox if ".tasks." in row.topic]
    task = read_task(record(*header_bytes(row.headers), value=row.value))
    assert isinstance(task, Task), task
    messages = Messages("shop", 4, "host:1", "5f0c")
    publication = Publication("order.charged", b'{"receipt": "r-77"}', None, None, None)
    recorded = RecordedResult(task.key, 1, "completed", b"1", "host:1", 0)
    for message in (
        messages.to_engine(messages.completed(task, b'"r-77"', 412_000, 0)),
        messages.to_engine(messages.failed(task, encode_error(ValueError("no"), retryable=True), 412_000, 0)),
        messages.to_engine(messages.recorded(task, recorded, None)),
        messages.published(task, 1, publication, 0),
        messages.published(task, 2, message_publication("jobs", {"job": 17}, {"priority": "high"}), 0),
    ):
        written = message.record()
        assert problems(list(written.headers), written.value) == [], message


def test_errors_are_what_the_contract_says() -> None:
    for error in (ValueError("no"), KeyError(), RuntimeError(object())):
        described = json.loads(encode_error(error, retryable=True))
        assert list(validator("error.json").iter_errors(described)) == []


def test_dead_letters() -> None:
    raw = b"\x00\xff" * MAX_VALUE_BYTES
    headers: list[tuple[str, bytes | None]] = [("\x01\0" * 200, b"\xff" * 100)] * 1_000
    whole = Record("shop.commands", 3, 17, None, b"hello", [("a", None), ("ü", b"\xff")], 0)
    huge = Record("shop.commands", 3, 18, b"\xff" * 5_000, raw, headers, 0)
    events = [
        dead_letter_event("/romancy/shop", whole, m.NOT_A_CLOUDEVENT, "what is this", 5, None, None),
        dead_letter_event("/romancy/shop", huge, m.TOO_LARGE, "x" * 100_000, 5, "/bank", "e-1"),
    ]
    for event in events:
        given, value = encode(event)
        assert problems(given, value) == []
        assert decode(record(*given, value=value)) == event
        assert len(event.data or b"") <= m.MAX_WRAPPED_BYTES
    data = json.loads(events[0].data or b"")
    assert (data["value_base64"], data["key_base64"], data["cut"]) == ("aGVsbG8=", None, False)
    assert data["headers"] == [{"name": "a", "value_base64": None}, {"name": "ü", "value_base64": "/w=="}]
    data = json.loads(events[1].data or b"")
    assert data["cut"] is True
    assert 0 < len(data["headers"]) < MAX_HEADERS_BYTES // 400
    assert events[1].extensions[names.X_CAUSATION] == "e-1"
    assert events[0].id == "shop.commands/3/17"


# -- the manifest --------------------------------------------------------------------------------------------------
def test_topic_specs_are_the_manifest() -> None:
    manifest = json.loads((ROOT / "manifest.json").read_text("utf-8"))["topics"]
    by_name = {topic["name"]: topic for topic in manifest}
    topics = Topics("shop")
    specs = topic_specs("shop", 8, ["default", "gpu"])
    assert specs == [
        TopicSpec(topics.commands, 8, by_name["{ns}.commands"]["config"]),
        TopicSpec(topics.results, 8, by_name["{ns}.results"]["config"]),
        TopicSpec(topics.events, 8, by_name["{ns}.events"]["config"]),
        TopicSpec(topics.tasks("default"), 8, by_name["{ns}.tasks.{queue}"]["config"]),
        TopicSpec(topics.tasks("gpu"), 8, by_name["{ns}.tasks.{queue}"]["config"]),
        TopicSpec(topics.dead_letters, 1, by_name["{ns}.dlq"]["config"]),
    ]
    assert {spec.partitions for spec in topic_specs("shop", 8)} == {8, 1}
    for spec in specs:
        assert spec.config["message.timestamp.type"] == "LogAppendTime"
        assert spec.config["cleanup.policy"] == "delete"
        assert int(spec.config["max.message.bytes"]) >= 1_048_576
        assert "min.insync.replicas" not in spec.config


@pytest.mark.parametrize(("app", "queue"), [("sh op", "q"), ("", "q"), ("shop", "a/b"), ("shop", ""), ("x" * 245, "q")])
def test_names_that_kafka_would_refuse(app: str, queue: str) -> None:
    with pytest.raises(ConfigurationError):
        topic_specs(app, 1, [queue])


def test_the_contract_is_found() -> None:
    assert contract_path("topics", "asyncapi.yaml").read_text("utf-8") == (ROOT / "asyncapi.yaml").read_text("utf-8")


# -- the page for outsiders ----------------------------------------------------------------------------------------
def test_samples_of_the_readme_start_the_same_workflow() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    [structured] = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    expected = decode(record(STRUCTURED, value=structured.encode()))
    assert isinstance(expected, WireEvent)
    [kcat] = re.findall(r"```sh\n(printf.*?)```", readme, re.DOTALL)
    [value] = re.findall(r"printf '%s' '(.*?)'", kcat)
    headers = [(name, text.encode()) for name, text in re.findall(r"-H (\S+?)=(\S+)", kcat)]
    assert decode(record(*headers, value=value.encode())) == expected
    assert problems(headers, value.encode()) == []


def test_the_readme_names_every_reason_and_every_link_leads_somewhere() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for reason in m.REASONS:
        assert f"`{reason}`" in readme
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", readme):
        assert (ROOT / link).exists(), link
