-- Tables of romancy_stream on MariaDB 10.6 or newer and MySQL 8.0.22 or newer. Every *_us column holds whole
-- microseconds since 1970 UTC. Text compares byte by byte, trailing blanks included; the collation that does so has
-- another name on each of the two, and each ignores the other's comment. DDL commits at once here, so every statement
-- may be run again after a crash half way.

-- What the app wrote down about itself at first use: namespace, partitions, topic ids.
CREATE TABLE IF NOT EXISTS romancy_meta (
    name  varchar(255) NOT NULL,
    value longtext,
    PRIMARY KEY (name)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- The fence: one row per partition, updated by every commit.
CREATE TABLE IF NOT EXISTS romancy_partitions (
    part      integer NOT NULL,
    epoch     bigint NOT NULL,
    commit_no bigint NOT NULL,
    position  bigint NOT NULL,
    owner     varchar(255),
    taken_at  bigint NOT NULL,
    stalls    integer NOT NULL,
    suspect   longtext,
    PRIMARY KEY (part)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Where to read on: the truth about consumed offsets.
CREATE TABLE IF NOT EXISTS romancy_offsets (
    topic       varchar(255) NOT NULL,
    part        integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, part)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- How far what one partition has for another was taken in.
CREATE TABLE IF NOT EXISTS romancy_watermarks (
    part     integer NOT NULL,
    origin   integer NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (part, origin)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- The event log: the truth about every instance. Append-only.
CREATE TABLE IF NOT EXISTS romancy_history (
    instance_id varchar(255) NOT NULL,
    run         integer NOT NULL,
    seq         integer NOT NULL,
    at_us       bigint NOT NULL,
    kind        varchar(64) NOT NULL,
    ref         varchar(255),
    attrs       longtext NOT NULL,
    payload     longtext,
    PRIMARY KEY (instance_id, run, seq)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Projection of the log: one row per instance.
CREATE TABLE IF NOT EXISTS romancy_instances (
    instance_id  varchar(255) NOT NULL,
    run          integer NOT NULL,
    part         integer NOT NULL,
    workflow     varchar(255) NOT NULL,
    status       varchar(32) NOT NULL,
    seq          integer NOT NULL,
    input        json,
    output       json,
    error        json,
    started_us   bigint NOT NULL,
    updated_us   bigint NOT NULL,
    finished_us  bigint,
    parked       longtext,
    event_source longtext NOT NULL,
    event_id     longtext NOT NULL,
    parent_id    varchar(255),
    waiting_for  json,
    version      varchar(64),
    PRIMARY KEY (instance_id),
    KEY romancy_instances_finished (part, finished_us),
    KEY romancy_instances_parent (parent_id),
    KEY romancy_instances_parked (part, parked(1)),
    KEY romancy_instances_started (started_us, instance_id),
    KEY romancy_instances_status (status, started_us)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Projection of the log: one row per activity.
CREATE TABLE IF NOT EXISTS romancy_activities (
    instance_id     varchar(255) NOT NULL,
    run             integer NOT NULL,
    activity_id     varchar(255) NOT NULL,
    name            varchar(255) NOT NULL,
    queue           varchar(255) NOT NULL,
    status          varchar(32) NOT NULL,
    attempt         integer NOT NULL,
    scheduled_us    bigint NOT NULL,
    updated_us      bigint NOT NULL,
    finished_us     bigint,
    next_attempt_us bigint,
    error           json,
    eager           varchar(64),
    PRIMARY KEY (instance_id, run, activity_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- The one key that decides who was first: a worker with its result, or the engine that gives up.
CREATE TABLE IF NOT EXISTS romancy_activity_results (
    instance_id varchar(255) NOT NULL,
    run         integer NOT NULL,
    activity_id varchar(255) NOT NULL,
    attempt     integer NOT NULL,
    outcome     varchar(16) NOT NULL,
    result      longtext,
    worker      varchar(255),
    at_us       bigint NOT NULL,
    PRIMARY KEY (instance_id, run, activity_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Projection of the log: timers that have not fired.
CREATE TABLE IF NOT EXISTS romancy_timers (
    instance_id varchar(255) NOT NULL,
    run         integer NOT NULL,
    timer_id    varchar(255) NOT NULL,
    part        integer NOT NULL,
    due_us      bigint NOT NULL,
    PRIMARY KEY (instance_id, run, timer_id),
    KEY romancy_timers_part (part)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Records to send, in commit order per partition. Deleted once acknowledged.
CREATE TABLE IF NOT EXISTS romancy_outbox (
    part         integer NOT NULL,
    position     bigint NOT NULL,
    topic        varchar(255) NOT NULL,
    `key`        varchar(255) NOT NULL,
    to_partition integer,
    headers      longtext NOT NULL,
    value        longblob,
    refused      longtext,
    PRIMARY KEY (part, position)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Records to send that an activity published in its own transaction.
CREATE TABLE IF NOT EXISTS romancy_worker_outbox (
    incarnation varchar(64) NOT NULL,
    seq         bigint NOT NULL,
    part        integer NOT NULL,
    at_us       bigint NOT NULL,
    topic       varchar(255) NOT NULL,
    `key`       varchar(255) NOT NULL,
    headers     longtext NOT NULL,
    value       longblob,
    PRIMARY KEY (incarnation, seq),
    KEY romancy_worker_outbox_part (part, at_us)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Records that could not be used, whole.
CREATE TABLE IF NOT EXISTS romancy_dead_letters (
    topic         varchar(255) NOT NULL,
    part          integer NOT NULL,
    record_offset bigint NOT NULL,
    at_us         bigint NOT NULL,
    reason        varchar(64) NOT NULL,
    message       longtext NOT NULL,
    record_key    longblob,
    headers       longtext NOT NULL,
    raw           longblob,
    event_source  longtext,
    event_id      longtext,
    replayed_us   bigint,
    PRIMARY KEY (topic, part, record_offset),
    KEY romancy_dead_letters_at (at_us)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Starts that were refused, so that a late question gets its answer.
CREATE TABLE IF NOT EXISTS romancy_rejections (
    instance_id  varchar(255) NOT NULL,
    part         integer NOT NULL,
    workflow     varchar(255) NOT NULL,
    reason       varchar(32) NOT NULL,
    message      longtext NOT NULL,
    errors       longtext NOT NULL,
    event_source longtext NOT NULL,
    event_id     longtext NOT NULL,
    at_us        bigint NOT NULL,
    PRIMARY KEY (instance_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- What waiters and senders meet at: an event type and key, a channel, a group. `head` is small JSON.
CREATE TABLE IF NOT EXISTS romancy_entities (
    entity     varchar(220) NOT NULL,
    part       integer NOT NULL,
    kind       varchar(32) NOT NULL,
    head       longtext NOT NULL,
    updated_us bigint NOT NULL,
    PRIMARY KEY (entity)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Who waits at an entity, subscribes to it or holds something of it.
CREATE TABLE IF NOT EXISTS romancy_members (
    entity      varchar(220) NOT NULL,
    instance_id varchar(255) NOT NULL,
    ref         varchar(255) NOT NULL,
    run         integer NOT NULL,
    seq         bigint NOT NULL,
    attrs       longtext NOT NULL,
    PRIMARY KEY (entity, instance_id, ref),
    KEY romancy_members_instance (instance_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- What an entity keeps until it is delivered or its time is over.
CREATE TABLE IF NOT EXISTS romancy_items (
    entity     varchar(220) NOT NULL,
    seq        bigint NOT NULL,
    part       integer NOT NULL,
    at_us      bigint NOT NULL,
    expires_us bigint,
    attrs      longtext NOT NULL,
    payload    longtext,
    PRIMARY KEY (entity, seq),
    KEY romancy_items_expires (part, expires_us)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Events that were taken in, by a digest of who sent them and their id.
CREATE TABLE IF NOT EXISTS romancy_intake (
    part   integer NOT NULL,
    digest varchar(64) NOT NULL,
    at_us  bigint NOT NULL,
    PRIMARY KEY (part, digest),
    KEY romancy_intake_at (part, at_us)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- What is left of deleted instances.
CREATE TABLE IF NOT EXISTS romancy_tombstones (
    instance_id  varchar(255) NOT NULL,
    part         integer NOT NULL,
    run          integer NOT NULL,
    event_source longtext NOT NULL,
    event_id     longtext NOT NULL,
    at_us        bigint NOT NULL,
    PRIMARY KEY (instance_id),
    KEY romancy_tombstones_at (part, at_us)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- The last sign of life of a long attempt.
CREATE TABLE IF NOT EXISTS romancy_heartbeats (
    instance_id varchar(255) NOT NULL,
    run         integer NOT NULL,
    activity_id varchar(255) NOT NULL,
    attempt     integer NOT NULL,
    at_us       bigint NOT NULL,
    details     longtext,
    PRIMARY KEY (instance_id, run, activity_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Long attempts that their worker has committed past: its lease stands for them.
CREATE TABLE IF NOT EXISTS romancy_detached (
    instance_id varchar(255) NOT NULL,
    run         integer NOT NULL,
    activity_id varchar(255) NOT NULL,
    part        integer NOT NULL,
    attempt     integer NOT NULL,
    incarnation varchar(64) NOT NULL,
    PRIMARY KEY (instance_id, run, activity_id),
    KEY romancy_detached_part (part)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- Until when the long attempts of a worker process count as alive.
CREATE TABLE IF NOT EXISTS romancy_leases (
    incarnation varchar(64) NOT NULL,
    expires_us  bigint NOT NULL,
    PRIMARY KEY (incarnation)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- For people. Times are datetime(6) in UTC.
CREATE OR REPLACE VIEW v_instances AS
SELECT instance_id, run, workflow, status, input, output, error,
       TIMESTAMPADD(MICROSECOND, started_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS started_at,
       TIMESTAMPADD(MICROSECOND, updated_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS updated_at,
       TIMESTAMPADD(MICROSECOND, finished_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS finished_at,
       part AS `partition`, parked, parent_id, waiting_for, version
FROM romancy_instances;

-- One row per attempt that has ended, out of the log.
CREATE OR REPLACE VIEW v_activity_attempts AS
SELECT e.instance_id, e.run, e.activity_id, a.name, e.attempt, e.outcome, e.error,
       TIMESTAMPADD(MICROSECOND, e.at_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS at
FROM (
    SELECT instance_id, run, ref AS activity_id, at_us,
           CAST(JSON_VALUE(attrs, '$.attempt') AS SIGNED) AS attempt,
           CASE kind WHEN 'activity.completed' THEN 'completed'
                     WHEN 'activity.attempt_failed' THEN 'failed'
                     ELSE JSON_VALUE(attrs, '$.reason') END AS outcome,
           CASE WHEN kind <> 'activity.completed' THEN payload END AS error,
           ROW_NUMBER() OVER (PARTITION BY instance_id, run, ref, CAST(JSON_VALUE(attrs, '$.attempt') AS SIGNED) ORDER BY seq) AS nth
    FROM romancy_history
    WHERE kind IN ('activity.completed', 'activity.attempt_failed', 'activity.failed')
) e
LEFT JOIN romancy_activities a
    ON a.instance_id = e.instance_id AND a.run = e.run AND a.activity_id = e.activity_id
WHERE e.nth = 1;

-- What a human should look at. An activity that still backs off after 5 attempts has outlived the default policy;
-- each such activity has a timer, and of those there are few.
CREATE OR REPLACE VIEW v_stuck AS
SELECT 'parked' AS kind, instance_id, TIMESTAMPADD(MICROSECOND, updated_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS since,
       parked COLLATE utf8mb4_bin AS detail
FROM romancy_instances WHERE parked IS NOT NULL
UNION ALL
SELECT 'refused', `key`, CAST(NULL AS datetime(6)),
       CONCAT('partition ', part, ', position ', position, ' for ', topic, ': ', refused) COLLATE utf8mb4_bin
FROM romancy_outbox WHERE refused IS NOT NULL
UNION ALL
SELECT 'backing_off', a.instance_id, TIMESTAMPADD(MICROSECOND, a.scheduled_us, TIMESTAMP '1970-01-01 00:00:00.000000'),
       CONCAT(a.activity_id, ': attempt ', a.attempt, ', last error ', COALESCE(CAST(a.error AS char) COLLATE utf8mb4_bin, 'unknown')) COLLATE utf8mb4_bin
FROM romancy_timers t JOIN romancy_activities a
    ON a.instance_id = t.instance_id AND a.run = t.run AND a.activity_id = substr(t.timer_id, 7)
WHERE substr(t.timer_id, 1, 6) = 'retry:' AND a.status = 'backing_off' AND a.attempt >= 5
UNION ALL
SELECT 'dead_letter', CAST(NULL AS char), TIMESTAMPADD(MICROSECOND, at_us, TIMESTAMP '1970-01-01 00:00:00.000000'),
       CONCAT(topic, '/', part, '/', record_offset, ': ', reason, ': ', message) COLLATE utf8mb4_bin
FROM romancy_dead_letters WHERE replayed_us IS NULL;

-- Channels, who listens and what waits to be received.
CREATE OR REPLACE VIEW v_channels AS
SELECT JSON_VALUE(e.head, '$.name') AS channel, JSON_VALUE(e.head, '$.mode') AS mode,
       (SELECT count(*) FROM romancy_members m WHERE m.entity = e.entity) AS subscribers,
       (SELECT count(*) FROM romancy_items i WHERE i.entity = e.entity) AS backlog
FROM romancy_entities e WHERE e.kind = 'channel';

-- Who waits for which event, and since when: the log tells when the wait was recorded.
CREATE OR REPLACE VIEW v_event_waits AS
SELECT w.event_type, w.event_key, w.instance_id, w.run, w.wait_id, w.matches,
       TIMESTAMPADD(MICROSECOND, w.since_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS since
FROM (
    SELECT JSON_VALUE(e.head, '$.type') AS event_type, JSON_VALUE(e.head, '$.key') AS event_key, m.instance_id, m.run,
           COALESCE(JSON_VALUE(m.attrs, '$.wait') COLLATE utf8mb4_bin, m.ref) AS wait_id, JSON_EXTRACT(m.attrs, '$.match') AS matches,
           (SELECT min(h.at_us) FROM romancy_history h
            WHERE h.instance_id = m.instance_id AND h.run = m.run AND h.ref = COALESCE(JSON_VALUE(m.attrs, '$.wait') COLLATE utf8mb4_bin, m.ref)) AS since_us
    FROM romancy_entities e JOIN romancy_members m ON m.entity = e.entity
    WHERE e.kind = 'event'
) w;
