create table factory.machine_events (
    event_id bigint generated always as identity primary key,
    machine_id bigint not null references factory.machines on delete cascade,
    happened_at timestamptz not null default now(),
    kind text not null,
    details jsonb not null default '{}'
);

create index machine_events_details on factory.machine_events using gin (details jsonb_path_ops);

-- A change of state leaves a trace, whoever makes it.
create function factory.record_state() returns trigger
language plpgsql
as $function$
begin
    if new.state is distinct from old.state then
        insert into factory.machine_events (machine_id, kind, details)
        values (new.machine_id, 'state', jsonb_build_object('from', old.state, 'to', new.state));
    end if;
    return new;
end;
$function$;

create trigger machines_state
    after update of state on factory.machines
    for each row execute function factory.record_state();
