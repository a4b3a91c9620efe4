-- Who may log in. Passwords are placeholders: conf/dev.toml has those of development, elsewhere the
-- variables FLYWAY_PLACEHOLDERS_OWNER_PASSWORD … give them.
CREATE USER factory_owner WITH PASSWORD '${owner_password}';
CREATE USER telemetry_service WITH PASSWORD '${telemetry_password}';
CREATE USER planning_service WITH PASSWORD '${planning_password}';
CREATE USER analyst WITH PASSWORD '${analyst_password}';

CREATE ROLE factory_read NOLOGIN;
GRANT factory_read TO analyst, planning_service;

ALTER ROLE analyst SET default_transaction_read_only = on;
ALTER ROLE analyst SET statement_timeout = '5min';

GRANT CONNECT ON DATABASE "${flyway:database}" TO telemetry_service, planning_service, analyst;
