"""Brokers: the port, Apache Kafka behind it, and a durable log inside the process."""
