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
    PRIMARY KEY (instance_id),
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

-- For people. Times are datetime(6) in UTC.
CREATE OR REPLACE VIEW v_instances AS
SELECT instance_id, run, workflow, status, input, output, error,
       TIMESTAMPADD(MICROSECOND, started_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS started_at,
       TIMESTAMPADD(MICROSECOND, updated_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS updated_at,
       TIMESTAMPADD(MICROSECOND, finished_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS finished_at,
       part AS `partition`, parked
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

-- What a human should look at. An activity that still backs off after 5 attempts has outlived the default policy.
CREATE OR REPLACE VIEW v_stuck AS
SELECT 'parked' AS kind, instance_id, TIMESTAMPADD(MICROSECOND, updated_us, TIMESTAMP '1970-01-01 00:00:00.000000') AS since,
       parked COLLATE utf8mb4_bin AS detail
FROM romancy_instances WHERE parked IS NOT NULL
UNION ALL
SELECT 'refused', `key`, CAST(NULL AS datetime(6)),
       CONCAT('partition ', part, ', position ', position, ' for ', topic, ': ', refused) COLLATE utf8mb4_bin
FROM romancy_outbox WHERE refused IS NOT NULL
UNION ALL
SELECT 'backing_off', instance_id, TIMESTAMPADD(MICROSECOND, scheduled_us, TIMESTAMP '1970-01-01 00:00:00.000000'),
       CONCAT(activity_id, ': attempt ', attempt, ', last error ', COALESCE(CAST(error AS char) COLLATE utf8mb4_bin, 'unknown')) COLLATE utf8mb4_bin
FROM romancy_activities WHERE status = 'backing_off' AND attempt >= 5
UNION ALL
SELECT 'dead_letter', CAST(NULL AS char), TIMESTAMPADD(MICROSECOND, at_us, TIMESTAMP '1970-01-01 00:00:00.000000'),
       CONCAT(topic, '/', part, '/', record_offset, ': ', reason, ': ', message) COLLATE utf8mb4_bin
FROM romancy_dead_letters WHERE replayed_us IS NULL;
