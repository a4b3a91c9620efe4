-- Built while production writes, so it cannot be part of a transaction: a file of its own.
create index concurrently machine_events_by_machine on factory.machine_events (machine_id, happened_at);
