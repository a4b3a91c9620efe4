-- One partition per month; what arrives outside of them waits in the last one.
create table factory.readings (
    sensor_id bigint not null references factory.sensors,
    taken_at timestamptz not null,
    value double precision not null,
    is_alarm boolean not null default false,
    primary key (sensor_id, taken_at)
) partition by range (taken_at);

create table factory.readings_2026_07 partition of factory.readings
    for values from ('2026-07-01 00:00+00') to ('2026-08-01 00:00+00');
create table factory.readings_2026_08 partition of factory.readings
    for values from ('2026-08-01 00:00+00') to ('2026-09-01 00:00+00');
create table factory.readings_2026_09 partition of factory.readings
    for values from ('2026-09-01 00:00+00') to ('2026-10-01 00:00+00');
create table factory.readings_other partition of factory.readings default;

create index readings_alarms on factory.readings (taken_at) where is_alarm;
