-- What each may do with the objects that the migrations make.
GRANT USAGE ON SCHEMA factory TO factory_read, telemetry_service, planning_service;

GRANT SELECT ON ALL TABLES IN SCHEMA factory TO factory_read;
ALTER DEFAULT PRIVILEGES IN SCHEMA factory GRANT SELECT ON TABLES TO factory_read;

GRANT SELECT ON factory.machines, factory.sensors TO telemetry_service;
GRANT SELECT, INSERT ON factory.readings, factory.machine_events TO telemetry_service;

GRANT INSERT, UPDATE, DELETE ON factory.shifts TO planning_service;
GRANT UPDATE (state) ON factory.machines TO planning_service;
GRANT INSERT ON factory.machine_events TO planning_service;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA factory TO telemetry_service, planning_service;
ALTER DEFAULT PRIVILEGES IN SCHEMA factory GRANT USAGE ON SEQUENCES TO planning_service;

-- Names, e-mails and phones are not for everybody.
REVOKE SELECT ON factory.operators FROM factory_read;
GRANT SELECT (operator_id, full_name, skills) ON factory.operators TO factory_read;
