-- Tables of romancy_stream on PostgreSQL 14 or newer. Every *_us column holds whole microseconds since 1970 UTC.
-- Ids and names compare byte by byte (COLLATE "C"), whatever the database's own collation.
-- fillfactor: rows that are updated over and over find room for the new version on their own page.

-- What the app wrote down about itself at first use: namespace, partitions, topic ids.
CREATE TABLE romancy_meta (
    name  varchar(255) COLLATE "C" NOT NULL,
    value text,
    PRIMARY KEY (name)
);

-- The fence: one row per partition, updated by every commit.
CREATE TABLE romancy_partitions (
    part      integer NOT NULL,
    epoch     bigint NOT NULL,
    commit_no bigint NOT NULL,
    position  bigint NOT NULL,
    owner     varchar(255) COLLATE "C",
    taken_at  bigint NOT NULL,
    stalls    integer NOT NULL,
    suspect   text,
    PRIMARY KEY (part)
) WITH (fillfactor = 10);

-- Where to read on: the truth about consumed offsets.
CREATE TABLE romancy_offsets (
    topic       varchar(255) COLLATE "C" NOT NULL,
    part        integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, part)
) WITH (fillfactor = 50);

-- How far what one partition has for another was taken in.
CREATE TABLE romancy_watermarks (
    part     integer NOT NULL,
    origin   integer NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (part, origin)
) WITH (fillfactor = 50);

-- The event log: the truth about every instance. Append-only.
CREATE TABLE romancy_history (
    instance_id varchar(255) COLLATE "C" NOT NULL,
    run         integer NOT NULL,
    seq         integer NOT NULL,
    at_us       bigint NOT NULL,
    kind        varchar(64) COLLATE "C" NOT NULL,
    ref         varchar(255) COLLATE "C",
    attrs       text NOT NULL,
    payload     text,
    PRIMARY KEY (instance_id, run, seq)
);

-- Projection of the log: one row per instance.
CREATE TABLE romancy_instances (
    instance_id  varchar(255) COLLATE "C" NOT NULL,
    run          integer NOT NULL,
    part         integer NOT NULL,
    workflow     varchar(255) COLLATE "C" NOT NULL,
    status       varchar(32) COLLATE "C" NOT NULL,
    seq          integer NOT NULL,
    input        jsonb,
    output       jsonb,
    error        jsonb,
    started_us   bigint NOT NULL,
    updated_us   bigint NOT NULL,
    finished_us  bigint,
    parked       text,
    event_source text NOT NULL,
    event_id     text NOT NULL,
    parent_id    varchar(255) COLLATE "C",
    waiting_for  jsonb,
    version      varchar(64) COLLATE "C",
    PRIMARY KEY (instance_id)
) WITH (fillfactor = 85);
CREATE INDEX romancy_instances_finished ON romancy_instances (part, finished_us) WHERE finished_us IS NOT NULL;
-- For searches by input. New entries wait in a list (of 256 kB, which each search reads) and are then put in together.
CREATE INDEX romancy_instances_input ON romancy_instances USING gin (input jsonb_path_ops)
    WITH (gin_pending_list_limit = 256);
CREATE INDEX romancy_instances_open ON romancy_instances (part) WHERE finished_us IS NULL;
CREATE INDEX romancy_instances_parent ON romancy_instances (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX romancy_instances_parked ON romancy_instances (part) WHERE parked IS NOT NULL;
CREATE INDEX romancy_instances_started ON romancy_instances (started_us, instance_id);
CREATE INDEX romancy_instances_status ON romancy_instances (status, started_us);

-- Projection of the log: one row per activity.
CREATE TABLE romancy_activities (
    instance_id     varchar(255) COLLATE "C" NOT NULL,
    run             integer NOT NULL,
    activity_id     varchar(255) COLLATE "C" NOT NULL,
    name            varchar(255) COLLATE "C" NOT NULL,
    queue           varchar(255) COLLATE "C" NOT NULL,
    status          varchar(32) COLLATE "C" NOT NULL,
    attempt         integer NOT NULL,
    scheduled_us    bigint NOT NULL,
    updated_us      bigint NOT NULL,
    finished_us     bigint,
    next_attempt_us bigint,
    error           jsonb,
    eager           varchar(64) COLLATE "C",
    PRIMARY KEY (instance_id, run, activity_id)
) WITH (fillfactor = 85);

-- The one key that decides who was first: a worker with its result, or the engine that gives up.
CREATE TABLE romancy_activity_results (
    instance_id varchar(255) COLLATE "C" NOT NULL,
    run         integer NOT NULL,
    activity_id varchar(255) COLLATE "C" NOT NULL,
    attempt     integer NOT NULL,
    outcome     varchar(16) COLLATE "C" NOT NULL,
    result      text,
    worker      varchar(255) COLLATE "C",
    at_us       bigint NOT NULL,
    PRIMARY KEY (instance_id, run, activity_id)
);

-- Projection of the log: timers that have not fired.
CREATE TABLE romancy_timers (
    instance_id varchar(255) COLLATE "C" NOT NULL,
    run         integer NOT NULL,
    timer_id    varchar(255) COLLATE "C" NOT NULL,
    part        integer NOT NULL,
    due_us      bigint NOT NULL,
    PRIMARY KEY (instance_id, run, timer_id)
);
CREATE INDEX romancy_timers_part ON romancy_timers (part);

-- Records to send, in commit order per partition. Deleted once acknowledged.
CREATE TABLE romancy_outbox (
    part         integer NOT NULL,
    position     bigint NOT NULL,
    topic        varchar(255) COLLATE "C" NOT NULL,
    key          varchar(255) COLLATE "C" NOT NULL,
    to_partition integer,
    headers      text NOT NULL,
    value        bytea,
    refused      text,
    PRIMARY KEY (part, position)
);

-- Records to send that an activity published in its own transaction.
CREATE TABLE romancy_worker_outbox (
    incarnation varchar(64) COLLATE "C" NOT NULL,
    seq         bigint NOT NULL,
    part        integer NOT NULL,
    at_us       bigint NOT NULL,
    topic       varchar(255) COLLATE "C" NOT NULL,
    key         varchar(255) COLLATE "C" NOT NULL,
    headers     text NOT NULL,
    value       bytea,
    PRIMARY KEY (incarnation, seq)
);
CREATE INDEX romancy_worker_outbox_part ON romancy_worker_outbox (part, at_us);

-- Records that could not be used, whole.
CREATE TABLE romancy_dead_letters (
    topic         varchar(255) COLLATE "C" NOT NULL,
    part          integer NOT NULL,
    record_offset bigint NOT NULL,
    at_us         bigint NOT NULL,
    reason        varchar(64) COLLATE "C" NOT NULL,
    message       text NOT NULL,
    record_key    bytea,
    headers       text NOT NULL,
    raw           bytea,
    event_source  text,
    event_id      text,
    replayed_us   bigint,
    PRIMARY KEY (topic, part, record_offset)
);
CREATE INDEX romancy_dead_letters_at ON romancy_dead_letters (at_us);

-- Starts that were refused, so that a late question gets its answer.
CREATE TABLE romancy_rejections (
    instance_id  varchar(255) COLLATE "C" NOT NULL,
    part         integer NOT NULL,
    workflow     varchar(255) COLLATE "C" NOT NULL,
    reason       varchar(32) COLLATE "C" NOT NULL,
    message      text NOT NULL,
    errors       text NOT NULL,
    event_source text NOT NULL,
    event_id     text NOT NULL,
    at_us        bigint NOT NULL,
    PRIMARY KEY (instance_id)
);

-- What waiters and senders meet at: an event type and key, a channel, a group. `head` is small JSON.
CREATE TABLE romancy_entities (
    entity     varchar(220) COLLATE "C" NOT NULL,
    part       integer NOT NULL,
    kind       varchar(32) COLLATE "C" NOT NULL,
    head       text NOT NULL,
    updated_us bigint NOT NULL,
    PRIMARY KEY (entity)
) WITH (fillfactor = 50);

-- Who waits at an entity, subscribes to it or holds something of it.
CREATE TABLE romancy_members (
    entity      varchar(220) COLLATE "C" NOT NULL,
    instance_id varchar(255) COLLATE "C" NOT NULL,
    ref         varchar(255) COLLATE "C" NOT NULL,
    run         integer NOT NULL,
    seq         bigint NOT NULL,
    attrs       text NOT NULL,
    PRIMARY KEY (entity, instance_id, ref)
);
CREATE INDEX romancy_members_instance ON romancy_members (instance_id);

-- What an entity keeps until it is delivered or its time is over.
CREATE TABLE romancy_items (
    entity     varchar(220) COLLATE "C" NOT NULL,
    seq        bigint NOT NULL,
    part       integer NOT NULL,
    at_us      bigint NOT NULL,
    expires_us bigint,
    attrs      text NOT NULL,
    payload    text,
    PRIMARY KEY (entity, seq)
);
CREATE INDEX romancy_items_expires ON romancy_items (part, expires_us) WHERE expires_us IS NOT NULL;

-- Events that were taken in, by a digest of who sent them and their id.
CREATE TABLE romancy_intake (
    part   integer NOT NULL,
    digest varchar(64) COLLATE "C" NOT NULL,
    at_us  bigint NOT NULL,
    PRIMARY KEY (part, digest)
);
CREATE INDEX romancy_intake_at ON romancy_intake (part, at_us);

-- What is left of deleted instances.
CREATE TABLE romancy_tombstones (
    instance_id  varchar(255) COLLATE "C" NOT NULL,
    part         integer NOT NULL,
    run          integer NOT NULL,
    event_source text NOT NULL,
    event_id     text NOT NULL,
    at_us        bigint NOT NULL,
    PRIMARY KEY (instance_id)
);
CREATE INDEX romancy_tombstones_at ON romancy_tombstones (part, at_us);

-- The last sign of life of a long attempt.
CREATE TABLE romancy_heartbeats (
    instance_id varchar(255) COLLATE "C" NOT NULL,
    run         integer NOT NULL,
    activity_id varchar(255) COLLATE "C" NOT NULL,
    attempt     integer NOT NULL,
    at_us       bigint NOT NULL,
    details     text,
    PRIMARY KEY (instance_id, run, activity_id)
) WITH (fillfactor = 50);

-- Long attempts that their worker has committed past: its lease stands for them.
CREATE TABLE romancy_detached (
    instance_id varchar(255) COLLATE "C" NOT NULL,
    run         integer NOT NULL,
    activity_id varchar(255) COLLATE "C" NOT NULL,
    part        integer NOT NULL,
    attempt     integer NOT NULL,
    incarnation varchar(64) COLLATE "C" NOT NULL,
    PRIMARY KEY (instance_id, run, activity_id)
);
CREATE INDEX romancy_detached_part ON romancy_detached (part);

-- Until when the long attempts of a worker process count as alive.
CREATE TABLE romancy_leases (
    incarnation varchar(64) COLLATE "C" NOT NULL,
    expires_us  bigint NOT NULL,
    PRIMARY KEY (incarnation)
) WITH (fillfactor = 50);

-- For people. Times are timestamptz.
CREATE VIEW v_instances AS
SELECT instance_id, run, workflow, status, input, output, error,
       timestamptz 'epoch' + started_us * interval '1 microsecond' AS started_at,
       timestamptz 'epoch' + updated_us * interval '1 microsecond' AS updated_at,
       timestamptz 'epoch' + finished_us * interval '1 microsecond' AS finished_at,
       part AS partition, parked, parent_id, waiting_for, version
FROM romancy_instances;

-- One row per attempt that has ended, out of the log.
CREATE VIEW v_activity_attempts AS
SELECT e.instance_id, e.run, e.activity_id, a.name, e.attempt, e.outcome, e.error,
       timestamptz 'epoch' + e.at_us * interval '1 microsecond' AS at
FROM (
    SELECT instance_id, run, ref AS activity_id, at_us,
           (attrs::json ->> 'attempt')::integer AS attempt,
           CASE kind WHEN 'activity.completed' THEN 'completed'
                     WHEN 'activity.attempt_failed' THEN 'failed'
                     ELSE attrs::json ->> 'reason' END AS outcome,
           CASE WHEN kind <> 'activity.completed' THEN payload END AS error,
           ROW_NUMBER() OVER (PARTITION BY instance_id, run, ref, (attrs::json ->> 'attempt')::integer ORDER BY seq) AS nth
    FROM romancy_history
    WHERE kind IN ('activity.completed', 'activity.attempt_failed', 'activity.failed')
) e
LEFT JOIN romancy_activities a
    ON a.instance_id = e.instance_id AND a.run = e.run AND a.activity_id = e.activity_id
WHERE e.nth = 1;

-- What a human should look at. An activity that still backs off after 5 attempts has outlived the default policy;
-- each such activity has a timer, and of those there are few.
CREATE VIEW v_stuck AS
SELECT 'parked' AS kind, instance_id, timestamptz 'epoch' + updated_us * interval '1 microsecond' AS since,
       parked AS detail
FROM romancy_instances WHERE parked IS NOT NULL
UNION ALL
SELECT 'refused', key, CAST(NULL AS timestamptz),
       'partition ' || CAST(part AS text) || ', position ' || CAST(position AS text) || ' for ' || topic || ': ' || refused
FROM romancy_outbox WHERE refused IS NOT NULL
UNION ALL
SELECT 'backing_off', a.instance_id, timestamptz 'epoch' + a.scheduled_us * interval '1 microsecond',
       a.activity_id || ': attempt ' || CAST(a.attempt AS text) || ', last error ' || COALESCE(CAST(a.error AS text), 'unknown')
FROM romancy_timers t JOIN romancy_activities a
    ON a.instance_id = t.instance_id AND a.run = t.run AND a.activity_id = substr(t.timer_id, 7)
WHERE substr(t.timer_id, 1, 6) = 'retry:' AND a.status = 'backing_off' AND a.attempt >= 5
UNION ALL
SELECT 'dead_letter', CAST(NULL AS text), timestamptz 'epoch' + at_us * interval '1 microsecond',
       topic || '/' || CAST(part AS text) || '/' || CAST(record_offset AS text) || ': ' || reason || ': ' || message
FROM romancy_dead_letters WHERE replayed_us IS NULL;

-- Channels, who listens and what waits to be received.
CREATE VIEW v_channels AS
SELECT e.head::json ->> 'name' AS channel, e.head::json ->> 'mode' AS mode,
       (SELECT count(*) FROM romancy_members m WHERE m.entity = e.entity) AS subscribers,
       (SELECT count(*) FROM romancy_items i WHERE i.entity = e.entity) AS backlog
FROM romancy_entities e WHERE e.kind = 'channel';

-- Who waits for which event, and since when: the log tells when the wait was recorded.
CREATE VIEW v_event_waits AS
SELECT w.event_type, w.event_key, w.instance_id, w.run, w.wait_id, w.matches,
       timestamptz 'epoch' + w.since_us * interval '1 microsecond' AS since
FROM (
    SELECT e.head::json ->> 'type' AS event_type, e.head::json ->> 'key' AS event_key, m.instance_id, m.run,
           COALESCE(m.attrs::json ->> 'wait', m.ref) AS wait_id, m.attrs::json ->> 'match' AS matches,
           (SELECT min(h.at_us) FROM romancy_history h
            WHERE h.instance_id = m.instance_id AND h.run = m.run AND h.ref = COALESCE(m.attrs::json ->> 'wait', m.ref)) AS since_us
    FROM romancy_entities e JOIN romancy_members m ON m.entity = e.entity
    WHERE e.kind = 'event'
) w;
