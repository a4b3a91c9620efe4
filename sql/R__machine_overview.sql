create or replace view factory.machine_overview as
select
    m.code,
    m.name,
    m.hall,
    m.state,
    count(distinct s.sensor_id) as sensors,
    (select max(e.happened_at) from factory.machine_events e where e.machine_id = m.machine_id)
        as last_event_at
from factory.machines m
left join factory.sensors s on s.machine_id = m.machine_id
group by m.machine_id;
