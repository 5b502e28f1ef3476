"""The one table of facts about the servers: versions, settings, limits. It touches nothing.

docker-compose.yml repeats the shared settings for people who use containers; a test compares the two.
"""

from __future__ import annotations

SERVICES = ("kafka", "kafka39", "postgres", "mariadb")
DEFAULT_SERVICES = ("kafka", "postgres", "mariadb")

# Newest first: the first one that can be had is used.
KAFKA_VERSIONS = {"kafka": ("4.2.0", "4.1.1", "4.1.0"), "kafka39": ("3.9.2", "3.9.1")}
POSTGRES_IMAGE_MAJOR = 16
POSTGRES_MIN_MAJOR = 14

USER = "romancy"
DATABASE = "romancy"

# What clients can notice: any broker that the tests or the compose file use must agree on these.
KAFKA_SHARED = {
    "auto.create.topics.enable": "false",  # a misspelt topic must fail, not appear
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",  # the first member must not wait 3 s for company
    "group.min.session.timeout.ms": "1000",  # tests of takeovers use short sessions
}

# Settings of the local broker only: they make a small broker cheap to start, kill and clean.
KAFKA_LOCAL = {
    "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),  # default 128 MiB does not fit a small heap well
    "log.index.size.max.bytes": str(1024 * 1024),  # tests make many topics; each partition maps two indexes
    "log.segment.delete.delay.ms": "1000",
    "broker.session.timeout.ms": "6000",  # a killed broker may return after this; less fences a starved one
    "broker.heartbeat.interval.ms": "1000",
}
KAFKA_LOCAL_4 = {"share.coordinator.state.topic.replication.factor": "1", "share.coordinator.state.topic.min.isr": "1"}
KAFKA_JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")
# The quick compiler alone: half the time to start, for programs that end before the thorough one pays off.
KAFKA_JVM_BRIEF = ("-XX:TieredStopAtLevel=1",)
BRIEF_VARIABLE = "ROMANCY_SERVICES_BRIEF"  # set by test sessions

POSTGRES_SHARED = {"fsync": "on", "synchronous_commit": "on", "max_connections": "200", "timezone": "UTC"}

MARIADB_LOCAL = {
    "character-set-server": "utf8mb4",
    "max-connections": "200",
    "innodb-flush-log-at-trx-commit": "1",  # a commit is on disk, as with fsync=on
    "innodb-buffer-pool-size": "64M",
}

# Limits (seconds). Generous: they bound a hang, they are not expectations.
START_TIMEOUT_S = 240.0  # a JVM on a crowded core needs a minute
STOP_TIMEOUT_S = 30.0  # clean shutdown; SIGKILL follows
INSTALL_TIMEOUT_S = 900.0  # package downloads
LOCK_TIMEOUT_S = 1200.0  # somebody else may be installing
LOG_TAIL_LINES = 15  # how much of a dead service's log its error quotes
PORT_RANGE = (
    20000,
    32000,
)  # below the usual ephemeral range, so that an outgoing connection never takes a dead service's port
PORT_TRIES = 200
