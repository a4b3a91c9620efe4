create schema factory;

create type factory.machine_state as enum ('running', 'idle', 'maintenance', 'retired');

create table factory.machines (
    machine_id bigint generated always as identity primary key,
    code text not null unique check (code ~ '^[A-Z]{2}-[0-9]{3}$'),
    name text not null,
    hall text not null,
    state factory.machine_state not null default 'idle',
    properties jsonb not null default '{}',
    installed_on date not null
);

comment on table factory.machines is 'Everything on the floor that has a type plate.';
comment on column factory.machines.properties is 'What the type plate says, as the maker words it.';
