-- Searches by paths of the input that the app names.

-- The paths, and since when all instances are in the table below.
CREATE TABLE romancy_searchable (
    path      varchar(255) NOT NULL,
    filled_us bigint,
    PRIMARY KEY (path)
);

-- What stands in the inputs there: 64 bits of a digest of path and value.
CREATE TABLE romancy_input_values (
    instance_id varchar(255) NOT NULL,
    value       bigint NOT NULL,
    started_us  bigint NOT NULL,
    PRIMARY KEY (instance_id, value)
) WITHOUT ROWID;
CREATE INDEX romancy_input_values_value ON romancy_input_values (value, started_us, instance_id);
