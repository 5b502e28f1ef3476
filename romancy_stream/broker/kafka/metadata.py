"""The two requests that aiokafka has only in versions too old for us: Metadata v10, which knows topic ids, and
CreateTopics v4, which lets the broker choose the replication factor; and one whose latest version it cannot read:
DescribeGroups. All work on every broker from 2.8 to 4.x. The layouts are those of the Kafka protocol guide. It touches
nothing.
"""

# mypy: disable-error-code="misc"

from __future__ import annotations

import uuid
from io import BytesIO
from typing import Any

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.admin import CreateTopicsRequest_v3, CreateTopicsResponse_v3, DescribeGroupsRequest_v2
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

METADATA_KEY = 3
CREATE_TOPICS_KEY = 19
NewTopic = tuple[str, int, int, list[Any], list[tuple[str, str]]]
NULL_ID = uuid.UUID(int=0)


class Uuid(AbstractType[uuid.UUID]):
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


class MetadataResponse_v10(Response):
    API_KEY = METADATA_KEY
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequest_v10(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = METADATA_KEY
    API_VERSION = 10
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicMetadataRequest(Request[MetadataRequest_v10]):
    """`names` None: all topics. Never creates one, whatever the broker's auto.create.topics.enable says."""

    API_KEY = METADATA_KEY

    def __init__(self, names: list[str] | None) -> None:
        self._names = names

    def build(self, request_struct_class: type[MetadataRequest_v10]) -> MetadataRequest_v10:
        topics: list[Any] | None = None if self._names is None else [(NULL_ID, name, {}) for name in self._names]
        return request_struct_class(topics, False, False, False, {})


class CreateTopicsResponse_v4(Response):
    API_KEY = CREATE_TOPICS_KEY
    API_VERSION = 4
    SCHEMA = CreateTopicsResponse_v3.SCHEMA


class CreateTopicsRequest_v4(RequestStruct):
    API_KEY = CREATE_TOPICS_KEY
    API_VERSION = 4
    RESPONSE_TYPE = CreateTopicsResponse_v4
    SCHEMA = CreateTopicsRequest_v3.SCHEMA


class NewTopicsRequest(Request[CreateTopicsRequest_v4]):
    """`topics`: (name, partitions, replication factor or -1, [], [(config key, value)])."""

    API_KEY = CREATE_TOPICS_KEY

    def __init__(self, topics: list[NewTopic], timeout_ms: int) -> None:
        self._topics = topics
        self._timeout_ms = timeout_ms

    def build(self, request_struct_class: type[CreateTopicsRequest_v4]) -> CreateTopicsRequest_v4:
        return request_struct_class(self._topics, self._timeout_ms, False)


class GroupsRequest(Request[DescribeGroupsRequest_v2]):
    """Answer: `groups`: (error code, group, state, protocol type, protocol, members)."""

    API_KEY = DescribeGroupsRequest_v2.API_KEY

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[DescribeGroupsRequest_v2]) -> DescribeGroupsRequest_v2:
        return request_struct_class(self._groups)
