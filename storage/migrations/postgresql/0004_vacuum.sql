-- Lists of what is open read past the entries of all that has ended since the table was vacuumed, 4 µs each the first
-- time. By default that is a fifth of the table: most of a second for a list among a million instances. A vacuum reads
-- the indexes, a second of a core for a million instances; there is one a minute at most.
ALTER TABLE romancy_instances SET (autovacuum_vacuum_scale_factor = 0.02);
