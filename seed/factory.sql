-- Sample data of the factory, the same on every machine: all numbers come from arithmetic, none from
-- random(). Loaded after the migrations where no snapshot fits (`seedbed up --seed files`).
-- The people are invented; e-mails end in example.com and phone numbers are reserved ones.

insert into factory.machines (code, name, hall, state, properties, installed_on)
select
    (array['PR', 'LA', 'MI', 'RO'])[1 + n % 4] || '-' || lpad((100 + n)::text, 3, '0'),
    (array['Press', 'Lathe', 'Mill', 'Robot'])[1 + n % 4] || ' ' || n,
    'hall ' || chr(65 + n % 3),
    (array['running', 'idle', 'running', 'maintenance'])[1 + n % 4]::factory.machine_state,
    jsonb_build_object(
        'maker', (array['Hartmann', 'Ostrava Works', 'Delacroix'])[1 + n % 3],
        'power_kw', 5 + n % 7 * 3.5,
        'axes', case when n % 4 = 3 then 6 else 3 end),
    date '2015-03-01' + n * 97
from generate_series(1, 12) as n
order by n;

insert into factory.sensors (machine_id, quantity, unit, lower_limit, upper_limit)
select machine_id, quantity, unit, lower_limit, upper_limit
from factory.machines
cross join (
    values
        (1, 'temperature'::factory.quantity, '°C', 15, 85),
        (2, 'vibration'::factory.quantity, 'mm/s', 0, 7.1),
        (3, 'current'::factory.quantity, 'A', 0, 32)
) as kinds (place, quantity, unit, lower_limit, upper_limit)
order by machine_id, place;

-- An hourly value of each sensor for two months: a daily wave with a little noise, and a rare alarm.
insert into factory.readings (sensor_id, taken_at, value, is_alarm)
select sensor_id, taken_at, round(value::numeric, 3), value > upper_limit
from factory.sensors
cross join generate_series(
    timestamptz '2026-07-20 00:00+00',
    timestamptz '2026-09-18 23:00+00',
    interval '1 hour') as taken_at
cross join lateral (select (extract(epoch from taken_at) / 3600)::bigint as hour) as h
cross join lateral (
    select lower_limit + span * (
        0.45
        + 0.25 * sin((hour % 24 + sensor_id % 5) * pi() / 12)
        + ((hour * 7919 + sensor_id * 104729) % 1000) / 8000.0
        + case when (hour * 31 + sensor_id * 17) % 911 = 0 then 0.8 else 0 end) as value
) as v
order by taken_at, sensor_id;

copy factory.operators (given_name, family_name, email, phone, badge, skills, hired_on) from stdin;
Amara	Lindqvist	amara.lindqvist@example.com	+44 20 7946 0101	\\x01a4	{press,lathe}	2016-02-01
Bruno	Takahara	bruno.takahara@example.com	+49 30 23125 014	\\x01a5	{mill}	2017-09-15
Chiara	Obuya	chiara.obuya@example.com	+33 1 99 00 12 34	\\x01a6	{robot,"teach pendant"}	2018-01-08
Dmitri	Fenwick	dmitri.fenwick@example.com	\N	\N	{lathe}	2018-05-22
Elif	Marchetti	elif.marchetti@example.com	+44 20 7946 0105	\\x01a8	{press}	2019-03-11
Farid	O'Sullivan	farid.osullivan@example.com	+49 30 23125 061	\\x01a9	{}	2019-10-01
Greta	Ñúñez	greta.nunez@example.com	+33 1 99 00 56 78	\\x01aa	{mill,lathe,press}	2020-06-30
Hiro	Achterberg	hiro.achterberg@example.com	+44 20 7946 0108	\N	{robot}	2021-11-02
Ines	Walczak	ines.walczak@example.com	+49 30 23125 088	\\x01ac	{press,"crane\\, small"}	2022-04-19
Jonas	Mbeki	jonas.mbeki@example.com	\N	\\x01ad	{lathe}	2023-08-07
Katya	Rossi	katya.rossi@example.com	+44 20 7946 0111	\\x01ae	{mill}	2024-01-15
Liam	Szabo	liam.szabo@example.com	+33 1 99 00 90 12	\\x01af	{robot,press}	2025-09-01
\.

-- Three shifts a day on each machine, by turns.
insert into factory.shifts (operator_id, machine_id, during, pieces, scrap, note)
select
    1 + (machine_id * 5 + day * 3 + turn) % 12,
    machine_id,
    tstzrange(began_at, began_at + interval '8 hours'),
    120 + (machine_id * 37 + day * 11 + turn * 53) % 90,
    (machine_id * 13 + day * 7 + turn) % 9,
    case when (machine_id + day) % 23 = 0 then E'tool changed\nfirst piece measured' end
from factory.machines
cross join generate_series(0, 60) as day
cross join generate_series(0, 2) as turn
cross join lateral (
    select timestamptz '2026-07-20 06:00+00' + day * interval '1 day' + turn * interval '8 hours'
        as began_at
) as b
order by began_at, machine_id;

insert into factory.machine_events (machine_id, happened_at, kind, details)
select
    machine_id,
    timestamptz '2026-07-20 05:30+00' + n * interval '31 hours' + machine_id * interval '11 minutes',
    (array['start', 'stop', 'tool', 'message'])[1 + n % 4],
    jsonb_build_object('sequence', n, 'program', 'P' || lpad((n * machine_id % 97)::text, 4, '0'))
from factory.machines
cross join generate_series(0, 46) as n
order by n, machine_id;

refresh materialized view factory.daily_output;
