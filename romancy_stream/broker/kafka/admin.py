"""Reads and creates topics over one client of its own. It may send requests to Kafka and wait; it knows no records.

The identity of a topic is the UUID that Kafka gives it at creation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient

from romancy_stream.broker.kafka.faults import NOT_ALLOWED, translated
from romancy_stream.broker.kafka.metadata import NewTopic, NewTopicsRequest, TopicMetadataRequest
from romancy_stream.broker.kafka.settings import CONNECT_LIMIT_S, KafkaSettings
from romancy_stream.broker.port import TopicInfo, TopicSpec
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError

# One question, retries on other brokers included: the broker may be electing a controller or restarting.
ANSWER_LIMIT_S = 30.0
RETRY_PAUSE_S = 0.2
CREATE_TIMEOUT_MS = 15_000
# From the answer "created" to leaders in the metadata of the broker we ask.
APPEAR_LIMIT_S = 60.0

CREATE_MAY_SUCCEED_LATER = (kafka.NotControllerError, kafka.RequestTimedOutError)


class Admin:
    def __init__(self, bootstrap: str, client_id: str, settings: KafkaSettings) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._settings = settings
        self._client: AIOKafkaClient | None = None

    async def open(self) -> None:
        client = AIOKafkaClient(
            bootstrap_servers=self._bootstrap, client_id=f"{self._client_id}-admin", **self._settings.client()
        )
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):  # not wait_for: in Python 3.11 it can swallow a cancellation
                await client.bootstrap()
        except BaseException as error:
            await client.close()
            if not isinstance(error, Exception):
                raise
            raise translated(error, f"no answer from Kafka at {self._bootstrap}") from error
        self._client = client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def topics(self, names: Sequence[str] | None = None) -> Mapping[str, TopicInfo]:
        """What exists (of `names`), internal topics left out. A topic without a leader yet is there already."""
        response = await self._ask(TopicMetadataRequest(None if names is None else list(names)))
        found: dict[str, TopicInfo] = {}
        for code, name, topic_id, internal, partitions, *_ in response.topics:
            error = kafka.for_code(code)
            if error in NOT_ALLOWED:
                raise ConfigurationError(f"not allowed to describe topic {name}: grant Describe")
            if internal or error not in (kafka.NoError, kafka.LeaderNotAvailableError):
                continue
            found[name] = TopicInfo(name, len(partitions), str(topic_id))
        return found

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        existing = await self.topics([spec.name for spec in specs]) if specs else {}
        wanted = {spec.name: spec for spec in specs if spec.name not in existing}
        made: list[str] = []
        deadline = asyncio.get_running_loop().time() + ANSWER_LIMIT_S
        missing = wanted
        while missing:
            missing = await self._create(list(missing.values()), made)
            if missing and asyncio.get_running_loop().time() > deadline:
                raise BrokerUnavailableError(f"no controller creates {', '.join(missing)}")
            if missing:
                await asyncio.sleep(RETRY_PAUSE_S)
        await self._wait_until_led(list(wanted))
        return made

    async def _create(self, specs: list[TopicSpec], made: list[str]) -> dict[str, TopicSpec]:
        """Appends to `made`; returns what to try again."""
        factor = self._settings.replication_factor
        rows: list[NewTopic] = [(spec.name, spec.partitions, factor, [], list(spec.config.items())) for spec in specs]
        response = await self._ask(NewTopicsRequest(rows, CREATE_TIMEOUT_MS), to_controller=True)
        again: dict[str, TopicSpec] = {}
        by_name = {spec.name: spec for spec in specs}
        for name, code, message in response.topic_errors:
            error = kafka.for_code(code)
            if error is kafka.NoError:
                made.append(name)
            elif error in CREATE_MAY_SUCCEED_LATER:
                again[name] = by_name[name]
            elif error is not kafka.TopicAlreadyExistsError:
                raise ConfigurationError(f"cannot create topic {name}: {error.__name__}: {message or ''}")
        return again

    async def _wait_until_led(self, names: list[str]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + APPEAR_LIMIT_S
        while names:
            response = await self._ask(TopicMetadataRequest(names))
            led = {name for code, name, _, _, partitions, *_ in response.topics if code == 0 and _all_led(partitions)}
            names = [name for name in names if name not in led]
            if names and loop.time() > deadline:
                raise BrokerUnavailableError(f"created, but without a leader: {', '.join(names)}")
            if names:
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _ask(self, request: Any, to_controller: bool = False) -> Any:
        """Retries what a broker restart explains."""
        if self._client is None:
            raise BrokerUnavailableError("the broker is not open")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_LIMIT_S
        while True:
            node = self._client.cluster.controller if to_controller else None
            node_id = node.nodeId if node is not None else self._client.get_random_node()
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._client.send(node_id, request)
            except NotImplementedError as error:
                raise ConfigurationError(f"Kafka at {self._bootstrap} is older than 2.8: {error}") from error
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                retriable = not isinstance(error, kafka.KafkaError) or error.retriable
                if not retriable or loop.time() > deadline:
                    raise translated(error, "no answer from Kafka") from error
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await self._client.force_metadata_update()
            await asyncio.sleep(RETRY_PAUSE_S)


def _all_led(partitions: Sequence[Any]) -> bool:
    return bool(partitions) and all(code == 0 and leader >= 0 for code, _, leader, *_ in partitions)
