-- The account that the snapshot job reads production with. Run once, as a superuser (on RDS: as the
-- master user), connected to the database that is to be dumped:
--   psql -v ON_ERROR_STOP=1 -d factory -f deploy/snapshot-role.sql
-- then give it a password without writing it anywhere: \password seedbed_snapshot

create role seedbed_snapshot login nosuperuser nocreatedb nocreaterole connection limit 12;
-- From PostgreSQL 14 on; on 13 grant usage on every schema and select on every table and sequence.
grant pg_read_all_data to seedbed_snapshot;
grant connect on database factory to seedbed_snapshot;

-- The job sets these for its sessions as well; here they also hold for whoever steals the password.
alter role seedbed_snapshot set default_transaction_read_only = on;
alter role seedbed_snapshot set statement_timeout = 0;
alter role seedbed_snapshot set idle_in_transaction_session_timeout = 0;

-- Only where tables have row-level security: without it their rows would be missing, and the job
-- refuses and names them.
--   alter role seedbed_snapshot bypassrls;
-- Only where the database holds large objects (pg_read_all_data does not reach them), for each:
--   grant select on large object 16410 to seedbed_snapshot;
