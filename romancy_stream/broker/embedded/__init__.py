"""The embedded broker: a partitioned durable log inside this process, for when there is no Kafka. One process, one
event loop; a second process uses Kafka."""

from romancy_stream.broker.embedded.broker import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
