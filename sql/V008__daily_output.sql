create materialized view factory.daily_output as
select machine_id, lower(during)::date as day, sum(pieces) as pieces, sum(scrap) as scrap
from factory.shifts
group by machine_id, lower(during)::date;

create unique index daily_output_key on factory.daily_output (machine_id, day);
