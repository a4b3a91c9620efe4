create sequence factory.shift_numbers start with 20260001;

create table factory.shifts (
    shift_number bigint primary key default nextval('factory.shift_numbers'),
    operator_id bigint not null references factory.operators,
    machine_id bigint not null references factory.machines,
    during tstzrange not null check (not isempty(during)),
    pieces integer not null default 0 check (pieces >= 0),
    scrap integer not null default 0 check (scrap between 0 and pieces),
    note text
);

alter sequence factory.shift_numbers owned by factory.shifts.shift_number;

create index shifts_during on factory.shifts using gist (during);
