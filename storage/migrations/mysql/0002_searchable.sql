-- Searches by paths of the input that the app names.

-- The paths, and since when all instances are in the table below.
CREATE TABLE IF NOT EXISTS romancy_searchable (
    path      varchar(255) NOT NULL,
    filled_us bigint,
    PRIMARY KEY (path)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;

-- What stands in the inputs there: 64 bits of a digest of path and value.
CREATE TABLE IF NOT EXISTS romancy_input_values (
    instance_id varchar(255) NOT NULL,
    value       bigint NOT NULL,
    started_us  bigint NOT NULL,
    PRIMARY KEY (instance_id, value),
    KEY romancy_input_values_value (value, started_us, instance_id)
) ENGINE = InnoDB CHARACTER SET utf8mb4
    /*M! COLLATE utf8mb4_nopad_bin */ /*!80017 COLLATE utf8mb4_0900_bin */;
