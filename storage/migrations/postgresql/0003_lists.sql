-- Lists by workflow, by status and by both go along one index.
DROP INDEX romancy_instances_status;
CREATE INDEX romancy_instances_status ON romancy_instances (status, workflow, started_us);
