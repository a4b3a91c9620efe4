create type factory.order_state as enum ('open', 'done', 'dropped');

create table factory.maintenance_orders (
    order_id bigint generated always as identity primary key,
    machine_id bigint not null references factory.machines,
    sensor_id bigint references factory.sensors,
    state factory.order_state not null default 'open',
    opened_at timestamptz not null default now(),
    reason text not null
);

-- What has raised alarms so far begins with an open order.
insert into factory.maintenance_orders (machine_id, sensor_id, opened_at, reason)
select machine_id, sensor_id, max(taken_at), count(*) || ' alarms of ' || quantity
from factory.readings
join factory.sensors using (sensor_id)
where is_alarm
group by machine_id, sensor_id, quantity
order by sensor_id;
