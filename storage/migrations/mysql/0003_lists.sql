-- Lists by workflow, by status and by both go along one index. One statement, which may be run again.
ALTER TABLE romancy_instances
    DROP KEY romancy_instances_status,
    ADD KEY romancy_instances_status (status, workflow, started_us);
