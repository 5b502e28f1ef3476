"""Questions about a broker that the engine never asks: how topics are configured, where their partitions begin and
end, what the cluster is. Asked with clients of their own, which live as long as the question."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from romancy_stream.broker.embedded import EmbeddedBroker
from romancy_stream.broker.kafka import KafkaBroker
from romancy_stream.broker.port import TP, Broker


async def topic_configs(broker: Broker, topics: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Topic -> name -> value; empty where the broker has no such thing, or does not tell us."""
    if not isinstance(broker, KafkaBroker) or not topics:
        return {}
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    async with _admin(broker) as admin:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in topics])
    configs: dict[str, dict[str, str]] = {}
    for answer in answers:
        for error_code, _, _, name, entries in answer.resources:
            if error_code == 0:
                configs[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return configs


async def extents(broker: Broker, tps: Sequence[TP]) -> Mapping[TP, tuple[int, int]]:
    """First offset that is there and next one to be written, of partitions that exist."""
    if isinstance(broker, EmbeddedBroker):
        topics = broker._log.topics
        return {
            tp: (p.start, p.end) for tp in tps for p in topics[tp.topic].partitions[tp.partition : tp.partition + 1]
        }
    if not isinstance(broker, KafkaBroker) or not tps:
        return {}
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, **broker.settings.consumer())
    await consumer.start()
    try:
        asked = [TopicPartition(tp.topic, tp.partition) for tp in tps]
        first, end = await consumer.beginning_offsets(asked), await consumer.end_offsets(asked)
    finally:
        await consumer.stop()
    return {TP(*tp): (first[tp], end[tp]) for tp in asked}


async def readers(broker: Broker, groups: Sequence[str]) -> Mapping[str, int]:
    """Group -> its members; empty for a broker that does not tell."""
    if not isinstance(broker, KafkaBroker) or not groups:
        return {}
    from romancy_stream.broker.kafka.metadata import GroupsRequest

    async with _admin(broker) as admin:
        answers = [
            await admin._client.send(await admin.find_coordinator(group), GroupsRequest([group])) for group in groups
        ]
    told = {group: len(members) for answer in answers for _, group, _, _, _, members, *_ in answer.groups}
    return dict.fromkeys(groups, 0) | told  # a group that never had a member is not there


async def committed(broker: Broker, group: str) -> Mapping[TP, int]:
    """The next offset that the group reads, of partitions that it has read."""
    if isinstance(broker, EmbeddedBroker):
        return dict(broker._log.positions.get(group, {}))
    if not isinstance(broker, KafkaBroker):
        return {}
    async with _admin(broker) as admin:
        found = await admin.list_consumer_group_offsets(group)
    return {TP(*tp): each.offset for tp, each in found.items()}


async def cluster(broker: KafkaBroker) -> str:
    async with _admin(broker) as admin:
        told = await admin.describe_cluster()
    return f"{len(told['brokers'])} broker(s), cluster {told.get('cluster_id') or 'without an id'}"


@contextlib.asynccontextmanager
async def _admin(broker: KafkaBroker) -> AsyncIterator[Any]:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap, **broker.settings.client())
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()
