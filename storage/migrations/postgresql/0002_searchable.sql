-- Searches by paths of the input that the app names. The index over all inputs serves them here: these tables are
-- empty.

CREATE TABLE romancy_searchable (
    path      varchar(255) COLLATE "C" NOT NULL,
    filled_us bigint,
    PRIMARY KEY (path)
);

CREATE TABLE romancy_input_values (
    instance_id varchar(255) COLLATE "C" NOT NULL,
    value       bigint NOT NULL,
    started_us  bigint NOT NULL,
    PRIMARY KEY (instance_id, value)
);
CREATE INDEX romancy_input_values_value ON romancy_input_values (value, started_us, instance_id);
