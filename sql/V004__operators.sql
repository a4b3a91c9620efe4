create table factory.operators (
    operator_id bigint generated always as identity primary key,
    given_name text not null,
    family_name text not null,
    full_name text generated always as (given_name || ' ' || family_name) stored,
    email text not null,
    phone text,
    badge bytea,
    skills text[] not null default '{}',
    hired_on date not null
);

create unique index operators_email on factory.operators (lower(email));
